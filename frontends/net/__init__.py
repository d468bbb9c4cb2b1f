"""Sockets and bytes: listeners, connections, TLS, timeouts, and followed files."""
