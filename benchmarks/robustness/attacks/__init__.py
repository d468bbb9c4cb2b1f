"""Requests that must not disturb other clients, sent to a server: `python -m benchmarks attacks`."""
