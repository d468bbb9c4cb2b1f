"""Admission policies by name, one module each; `contender.py` beside this folder describes what a module has."""
