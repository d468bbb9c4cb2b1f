"""Commands for the studies of this project: one module for each."""
