"""Admission for several engines: one queue, a policy for each engine, and the choice of the engine."""
