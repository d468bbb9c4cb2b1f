"""Load generators: send a plan's requests and record their times."""
