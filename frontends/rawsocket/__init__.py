"""The raw-socket protocol: many streams on one connection (docs/protocol.md)."""
