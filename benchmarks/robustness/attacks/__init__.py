"""Requests that must not disturb other clients, played against a server: `python -m benchmarks attacks`."""
