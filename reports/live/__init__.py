"""Follows a running server through its /metrics: ours or vLLM's."""
