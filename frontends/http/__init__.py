"""The HTTP application: its server, its middlewares and its routes."""
