"""Management of an engine's processes, and of what they leave in the system."""
