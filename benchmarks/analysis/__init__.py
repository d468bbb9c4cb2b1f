"""Figures and conclusions from recordings."""
