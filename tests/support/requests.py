"""Requests that several test modules send."""

from typing import Any

from llmserve import GenerationRequest, Sampling


def endless(name):
    return GenerationRequest("x", request_id=name, sampling=Sampling(max_tokens=2000, ignore_eos=True))


def nested(levels):
    """Return a schema of this depth."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema
