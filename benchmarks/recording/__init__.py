"""The records of a run, their files, and where they come from."""
