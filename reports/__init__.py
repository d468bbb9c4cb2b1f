"""Reads results and draws them; runs no measurement."""
