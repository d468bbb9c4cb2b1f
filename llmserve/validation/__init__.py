"""Checks of arguments, and results as plain values."""
