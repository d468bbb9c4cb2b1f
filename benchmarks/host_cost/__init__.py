"""What a token costs the host: this project's servers beside vLLM's."""
