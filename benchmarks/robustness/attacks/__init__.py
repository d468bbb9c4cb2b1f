"""Sends requests that must not disturb other clients: `python -m benchmarks attacks`."""
