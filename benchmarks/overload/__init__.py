"""Overload: what admission does when more is asked for than can be served, in virtual time and on real engines."""
