"""The processes of an engine, and what they leave in the system."""
