"""The answers to requests for vectors, and their JSON in parts.

One answer may have millions of numbers. They are encoded in pieces, with pauses for the event loop.
"""

import base64
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from frontends.net.turns import WorkQueue
from llmserve import Embedding

# Elements of vectors that are encoded at once, in about a millisecond.
MAX_AT_ONCE = 2**13


class PoolingUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(msgspec.Struct):
    """`embedding` is a list of numbers, or the base64 of 32-bit floats (little-endian)."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class PooledItem(msgspec.Struct):
    """`data` is as `embedding` of an embedding."""

    index: int
    data: list[float] | str
    object: Literal["pooling"] = "pooling"


class ScoreItem(msgspec.Struct):
    index: int
    score: float
    object: Literal["score"] = "score"


class ClassItem(msgspec.Struct):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class RankedDocument(msgspec.Struct):
    text: str


class RankedItem(msgspec.Struct, omit_defaults=True):
    index: int
    relevance_score: float
    document: RankedDocument | msgspec.UnsetType = msgspec.UNSET


class EmbeddingsAnswer(msgspec.Struct):
    """The answer to POST /v1/embeddings."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[EmbeddingItem]
    usage: PoolingUsage


class PooledAnswer(msgspec.Struct):
    """The answer to POST /pooling."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PooledItem]
    usage: PoolingUsage


class ScoreAnswer(msgspec.Struct):
    """The answer to POST /score."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreItem]
    usage: PoolingUsage


class ClassesAnswer(msgspec.Struct):
    """The answer to POST /classify."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassItem]
    usage: PoolingUsage


class RerankAnswer(msgspec.Struct):
    """The answer to POST /rerank: the documents by their relevance, the most relevant first."""

    id: str
    model: str
    results: list[RankedItem]
    usage: PoolingUsage


def answer_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def usage_of(found: Iterable[Embedding]) -> PoolingUsage:
    tokens = sum(one.usage.prompt_tokens for one in found)
    return PoolingUsage(tokens, tokens)


def vector_item(index: int, found: Embedding, *, kind: type[EmbeddingItem | PooledItem], as_text: bool) -> EmbeddingItem | PooledItem:
    return kind(index, base64.b64encode(found.data).decode() if as_text else found.vector.tolist())


def class_item(index: int, found: Embedding, labels: Sequence[str]) -> ClassItem:
    scores = found.vector.tolist()
    best = max(range(len(scores)), key=scores.__getitem__)
    return ClassItem(index, labels[best] if best < len(labels) else None, scores, len(scores))


async def list_answer(
    name: str, model: str, found: Sequence[Embedding], item: Callable[[int, Embedding], Any], turns: WorkQueue
) -> AsyncIterator[bytes]:
    """Yield the JSON of an answer in parts: its `data` has `item(index, vector)` for each vector."""

    def piece(start: int, count: int) -> bytes:
        items = [item(index, one) for index, one in enumerate(found[start : start + count], start)]
        return (b"," if start else b"") + msgspec.json.encode(items)[1:-1]

    count = max(1, MAX_AT_ONCE // max(1, len(found[0])))
    yield b'{"data":['
    for start in range(0, len(found), count):
        yield await turns.run(piece, start, count)
    rest = {"id": name, "object": "list", "created": int(time.time()), "model": model, "usage": usage_of(found)}
    yield b"]," + msgspec.json.encode(rest)[1:]
