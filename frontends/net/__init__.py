"""Sockets and bytes: listeners, connections, TLS, timeouts, watched files."""
