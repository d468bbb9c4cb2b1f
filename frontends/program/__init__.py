"""Shared by all servers: settings, the service made of them, startup checks, startup and shutdown."""
