"""Metrics and traces, and their export to other systems. Dependencies are imported lazily."""
