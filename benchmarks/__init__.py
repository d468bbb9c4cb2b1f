"""Generates load, records measurements and draws conclusions; draws no charts."""
