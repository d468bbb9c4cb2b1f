"""Servers in front of `EngineManager.stream()`. They have no queue, no retries and no policy."""
