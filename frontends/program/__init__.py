"""What every server program shares: command line, logs, start and end."""
