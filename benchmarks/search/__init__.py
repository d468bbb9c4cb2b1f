"""Finds the highest load that meets the SLO: `python -m benchmarks search`."""
