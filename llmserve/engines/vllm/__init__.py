"""vLLM's AsyncLLM behind the engine protocol."""
