"""Requests for a vector of a whole prompt instead of an answer, and their results."""
