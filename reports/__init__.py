"""Reads results and draws them; never runs anything."""
