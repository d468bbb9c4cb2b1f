"""Structured outputs: constraints compiled and tried in a sandbox before vLLM gets them, and ejected when they become costly."""
