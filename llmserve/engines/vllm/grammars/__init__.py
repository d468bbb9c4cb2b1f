"""Constraints are compiled and tested in a sandbox, and ejected if they slow the engine down."""
