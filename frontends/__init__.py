"""Wires into `EngineManager.stream()` and back. No queue, no retry and no policy of their own."""
