"""Runs a sweep point by point: prepares the systems, applies the load, keeps the recordings."""
