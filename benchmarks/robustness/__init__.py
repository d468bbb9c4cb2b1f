"""Attacks, faults, cancellations and soaks, each beside a canary."""
