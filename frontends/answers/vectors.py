"""The routes that answer with vectors: OpenAI's embeddings, and vLLM's scores, ranks and classes."""

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, ClassVar

import attrs
import msgspec

from frontends.access.caller import Caller
from frontends.answers.served_model import ServedModel
from frontends.pooling.answers import (
    EmbeddingItem,
    PooledItem,
    RerankAnswer,
    ScoreAnswer,
    ScoreItem,
    answer_id,
    class_item,
    list_answer,
    usage_of,
    vector_item,
)
from frontends.pooling.fan_out import embed_all
from frontends.pooling.inputs import ClassifyRequest, EmbeddingsRequest, PoolRequest, VectorsBody
from frontends.pooling.requests import ParsedInputs
from frontends.pooling.scoring import RerankRequest, ScoreRequest, Scoring, ScoringBody
from llmserve import Embedding, InvalidRequest, PoolingRequest

# Maximum number of elements of one answer's vectors: 16 MiB as bytes, and some 80 MiB as JSON.
MAX_ELEMENTS = 2**22


@attrs.frozen
class WantedVectors:
    """A body's content.

    Attributes:
        id: The answer's id.
        inputs: The requests for the vectors, and the client's names of their fields.
        write: Returns the answer as JSON in parts, from its id, the model's name and the vectors.
    """

    id: str
    inputs: ParsedInputs
    write: Callable[[str, str, list[Embedding]], AsyncIterator[bytes]]

    @property
    def requests(self) -> list[PoolingRequest]:
        return self.inputs.requests


class Vectors:
    """Parses the bodies of the paths in `kinds`, and writes their answers."""

    kinds: ClassVar[dict[str, type[Any]]] = {
        "/v1/embeddings": EmbeddingsRequest,
        "/pooling": PoolRequest,
        "/classify": ClassifyRequest,
        **dict.fromkeys(("/score", "/v1/score"), ScoreRequest),
        **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), RerankRequest),
    }

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._readers = {path: served.reader(kind) for path, kind in self.kinds.items()}

    async def parse(self, path: str, body: bytes | msgspec.Raw, caller: Caller) -> WantedVectors:
        """Return a body's content. Raises LLMServeError."""
        wanted = await self._served.decode(body, self._readers[path], partial(self._wanted, caller))
        if isinstance(wanted.inputs, Scoring) and any(wanted.inputs.most):
            return attrs.evolve(wanted, inputs=await wanted.inputs.shortened(self._served.manager))
        return wanted

    async def whole(self, wanted: WantedVectors, at_once: int | None = None) -> AsyncIterator[bytes]:
        """Make the vectors, at most `at_once` together, and return the answer as JSON, in parts.

        Raises LLMServeError.
        """
        manager, requests = self._served.manager, wanted.requests
        size = manager.info.embedding_size if manager.engine_is_up else 0
        if len(requests) * size > MAX_ELEMENTS:
            most = f"vectors of {size:,} elements for at most {MAX_ELEMENTS // size:,}"
            words = f"{len(requests):,} texts are too many for one request: the server answers with {most}"
            raise InvalidRequest(words, wanted.inputs.names(0)["prompt"])
        found = await embed_all(manager, requests, wanted.inputs.names, at_once)
        return wanted.write(wanted.id, requests[0].adapter or self._served.name, found)

    def _wanted(self, caller: Caller, body: Any) -> WantedVectors:
        adapter, turns = self._served.adapter(body.model), self._served.turns
        if isinstance(body, ScoringBody):
            return self._scored(caller, adapter, body)
        item: Callable[[int, Embedding], Any]
        if isinstance(body, VectorsBody):
            prefix, kind = ("embd", EmbeddingItem) if isinstance(body, EmbeddingsRequest) else ("pool", PooledItem)
            item = partial(vector_item, kind=kind, as_text=body.encoding_format == "base64")
        else:
            # Only an engine that is up has made vectors, so only then its labels are read.
            prefix, item = "classify", lambda index, found: class_item(index, found, self._served.manager.info.labels)
        return WantedVectors(answer_id(prefix), body.wanted(caller, adapter), partial(list_answer, item=item, turns=turns))

    def _scored(self, caller: Caller, adapter: str | None, body: ScoringBody) -> WantedVectors:
        manager = self._served.manager
        if not manager.engine_is_up:
            # The model, which decides how it scores, is unknown.
            manager.check_health()
        scoring = body.scoring(caller, adapter, manager.info)
        return WantedVectors(answer_id("score"), scoring, partial(self._scores, body, scoring))

    async def _scores(self, body: ScoringBody, scoring: Scoring, name: str, model: str, found: list[Embedding]) -> AsyncIterator[bytes]:
        scores, usage = await scoring.scores(found, self._served.turns), usage_of(found)
        if isinstance(body, RerankRequest):
            yield msgspec.json.encode(RerankAnswer(name, model, body.ranked(scores), usage))
        else:
            items = [ScoreItem(index, score) for index, score in enumerate(scores)]
            yield msgspec.json.encode(ScoreAnswer(name, "list", int(time.time()), model, items, usage))
