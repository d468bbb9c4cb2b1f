"""Results as plain values, for json, FastAPI and everything else that takes dictionaries and lists."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

# OpenAI's and vLLM's number for a probability of 0, whose logarithm JSON does not have.
IMPOSSIBLE = -9999.0


class Result(msgspec.Struct, frozen=True):
    """A result that can be turned into a dictionary."""

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers that JSON has: a log probability of minus infinity becomes -9999.0."""
        return plain(self)


def plain(result: object) -> dict[str, Any]:
    """For what msgspec can take apart: its structs, and classes of attrs."""
    fields: dict[str, Any] = msgspec.to_builtins(result, enc_hook=_unpacked)
    _make_finite([fields])
    for name in ("logprobs", "prompt_logprobs"):
        _make_finite(fields.get(name) or ())
    return fields


def _unpacked(value: object) -> Sequence[object]:
    """`PackedLogprobs` is the one sequence that msgspec does not know."""
    if isinstance(value, Sequence):
        return list(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be encoded")


def _make_finite(entries: Sequence[dict[str, Any]]) -> None:
    for entry in entries:
        if entry.get("logprob") == -math.inf:
            entry["logprob"] = IMPOSSIBLE
        _make_finite(entry.get("top", ()))
