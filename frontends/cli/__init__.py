"""The command `llmserve`: the programs, and the terminal tools for a running server."""
