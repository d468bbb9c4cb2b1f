"""Vectors as the engine makes them, and as callers get them: 32-bit floats, little-endian."""

from array import array
from collections.abc import Sequence
from operator import mul
from typing import Any

from llmserve.request import Delta, Usage
from llmserve.validation.results import Result

# Bytes of one element.
ITEM = 4


class Pooled(Delta, frozen=True, gc=False):
    """The one delta of a request for a vector: the vector's bytes, without tokens."""

    data: bytes = b""


class Embedding(Result, frozen=True):
    """The vector of a prompt.

    Attributes:
        data: The elements as 32-bit floats, little-endian.
        usage: Number of the prompt's tokens; an embedding has no answer.
    """

    request_id: str
    data: bytes
    usage: Usage

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the elements as `vector`."""
        return {"request_id": self.request_id, "vector": self.vector.tolist(), "usage": self.usage.to_dict()}

    @property
    def vector(self) -> "array[float]":
        """The elements. numpy's `asarray` accepts it without a copy."""
        return array("f", self.data)

    def __len__(self) -> int:
        """Number of elements."""
        return len(self.data) // ITEM


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors of one length; 0.0 for a vector of zeros."""
    lengths = sum(map(mul, one, one)) * sum(map(mul, other, other))
    return float(sum(map(mul, one, other)) / lengths**0.5) if lengths else 0.0
