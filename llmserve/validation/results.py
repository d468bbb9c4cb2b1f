"""Results as plain values, for json, FastAPI and other libraries that accept dictionaries."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

# OpenAI and vLLM use this number for a probability of 0, whose logarithm JSON cannot represent.
IMPOSSIBLE = -9999.0


class Result(msgspec.Struct, frozen=True):
    """A result that can be converted to a dictionary."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values. A log probability of minus infinity becomes -9999.0."""
        return plain(self)


def plain(result: object) -> dict[str, Any]:
    """Convert a msgspec struct or an attrs class to plain values."""
    fields: dict[str, Any] = msgspec.to_builtins(result, enc_hook=_unpacked)
    _make_finite([fields])
    for name in ("logprobs", "prompt_logprobs"):
        _make_finite(fields.get(name) or ())
    return fields


def _unpacked(value: object) -> Sequence[object]:
    """Convert `PackedLogprobs`, the only sequence that msgspec does not know."""
    if isinstance(value, Sequence):
        return list(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be encoded")


def _make_finite(entries: Sequence[dict[str, Any]]) -> None:
    for entry in entries:
        if entry.get("logprob") == -math.inf:
            entry["logprob"] = IMPOSSIBLE
        _make_finite(entry.get("top", ()))
