"""The simulated engine's vectors: texts with the same words in them point in similar directions."""

import math
from array import array
from collections.abc import Sequence
from zlib import crc32

from llmserve.pooling.requests import CLASSIFY, Pooling
from llmserve.pooling.vectors import cosine

# Number of elements of an embedding.
SIZE = 64
# Tokens of which an element counts the sequences; here a token is a byte of text.
GRAM = 3


def vector(tokens: Sequence[int], pooling: Pooling, seed: int, classes: int) -> bytes:
    """Return the bytes of the embedding, or of the scores of `classes` classes."""
    if pooling.task == CLASSIFY:
        return array("f", _scores(tokens, pooling, seed, classes)).tobytes()
    found = _counts(tokens, seed)[: pooling.dimensions]
    return array("f", found if pooling.activation is False else _normalised(found)).tobytes()


def _counts(tokens: Sequence[int], seed: int) -> list[float]:
    """Count the sequences of GRAM tokens, each in the element that its hash selects."""
    found = [0.0] * SIZE
    for start in range(max(1, len(tokens) - GRAM + 1)):
        found[crc32(repr((seed, *tokens[start : start + GRAM])).encode()) % SIZE] += 1.0
    return found


def _normalised(found: list[float]) -> list[float]:
    # The first elements may all be zero.
    length = math.sqrt(sum(value * value for value in found)) or 1.0
    return [value / length for value in found]


def _scores(tokens: Sequence[int], pooling: Pooling, seed: int, classes: int) -> list[float]:
    """Return a pair's similarity as the score of the first class, and scores from the text for others."""
    if pooling.second is not None:
        raw = [cosine(_counts(tokens[: pooling.second - 1], seed), _counts(tokens[pooling.second :], seed))] * min(1, classes)
    else:
        raw = []
    raw += _counts(tokens, seed)[: classes - len(raw)]
    if pooling.activation is False:
        return raw
    if classes == 1:
        return [1.0 / (1.0 + math.exp(-raw[0]))]
    weights = [math.exp(value - max(raw)) for value in raw]
    return [weight / sum(weights) for weight in weights]
