"""Shared by all server programs: command line, startup checks, startup and shutdown."""
