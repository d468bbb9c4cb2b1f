"""The maximum number of tokens in a step of vLLM's engine, which changes while it is up."""
