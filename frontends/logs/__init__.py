"""Logs and standard streams: one format for all lines, written by threads that may block."""
