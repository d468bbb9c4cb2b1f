"""Admission under overload, in virtual time and on real engines."""
