"""Attacks, faults, cancellations and soaks, each with a canary beside it."""
