"""Compares load generators with a scripted server that knows the truth."""
