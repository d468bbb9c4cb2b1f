"""Logs and standard streams: one form for all lines, written by threads that may wait."""
