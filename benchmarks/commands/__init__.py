"""Commands for users: one module for each."""
