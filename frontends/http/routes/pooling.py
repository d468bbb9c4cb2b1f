"""The routes that answer with vectors: OpenAI's /v1/embeddings, and vLLM's scores, ranks and classes."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from frontends.http.access_log import name_answer
from frontends.http.authentication import CALLER
from frontends.http.request_checks import Handler
from frontends.http.responses import json_response, whole_response
from frontends.http.routes.served_model import ServedModel
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
from frontends.pooling.inputs import ClassifyRequest, EmbeddingsRequest, PoolRequest
from frontends.pooling.requests import ParsedInputs
from frontends.pooling.scoring import RerankRequest, ScoreRequest, Scoring, ScoringBody
from llmserve import Embedding, InvalidRequest, PoolingRequest

# Returns the item of an answer for a number and its vector.
Item = Callable[[int, Embedding], Any]
# Maximum number of elements of one answer's vectors: 16 MiB as bytes, and some 80 MiB as JSON.
MAX_ELEMENTS = 2**22


class PoolingRoutes:
    """The handlers."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._embeddings = served.reader(EmbeddingsRequest)
        self._pooling = served.reader(PoolRequest)
        self._classify = served.reader(ClassifyRequest)
        self._score = served.reader(ScoreRequest)
        self._rerank = served.reader(RerankRequest)

    def routes(self) -> dict[str, Handler]:
        return {
            "POST /v1/embeddings": self.embeddings,
            "POST /pooling": self.pooling,
            "POST /classify": self.classify,
            **dict.fromkeys(("POST /score", "POST /v1/score"), self.score),
            **dict.fromkeys(("POST /rerank", "POST /v1/rerank", "POST /v2/rerank"), self.rerank),
        }

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        wanted, item = await self._served.read(request, self._embeddings, partial(self._wanted, request, EmbeddingItem))
        return await self._list(request, "embd", wanted, item)

    async def pooling(self, request: web.Request) -> web.StreamResponse:
        wanted, item = await self._served.read(request, self._pooling, partial(self._wanted, request, PooledItem))
        return await self._list(request, "pool", wanted, item)

    def _wanted(
        self, request: web.Request, kind: type[EmbeddingItem | PooledItem], body: EmbeddingsRequest | PoolRequest
    ) -> tuple[ParsedInputs, Item]:
        wanted = body.wanted(request[CALLER], self._served.adapter(body.model))
        return wanted, partial(vector_item, kind=kind, as_text=body.encoding_format == "base64")

    async def _list(self, request: web.Request, prefix: str, wanted: ParsedInputs, item: Item) -> web.StreamResponse:
        name, found = await self._vectors(request, prefix, wanted)
        return await whole_response(list_answer(name, self._model(wanted.requests), found, item, self._served.turns))

    async def classify(self, request: web.Request) -> web.StreamResponse:
        def make(body: ClassifyRequest) -> ParsedInputs:
            return body.wanted(request[CALLER], self._served.adapter(body.model))

        wanted = await self._served.read(request, self._classify, make)
        # The labels are known only once the engine is up, as it was for the vectors.
        return await self._list(request, "classify", wanted, lambda index, one: class_item(index, one, self._served.manager.info.labels))

    async def score(self, request: web.Request) -> web.StreamResponse:
        scoring = await self._served.read(request, self._score, partial(self._scoring, request))
        name, found, scores = await self._scores(request, scoring)
        items = [ScoreItem(index, score) for index, score in enumerate(scores)]
        return json_response(ScoreAnswer(name, "list", int(time.time()), self._model(scoring.requests), items, usage_of(found)))

    async def rerank(self, request: web.Request) -> web.StreamResponse:
        def make(body: RerankRequest) -> tuple[Scoring, RerankRequest]:
            return self._scoring(request, body), body

        scoring, body = await self._served.read(request, self._rerank, make)
        name, found, scores = await self._scores(request, scoring)
        return json_response(RerankAnswer(name, self._model(scoring.requests), body.ranked(scores), usage_of(found)))

    def _scoring(self, request: web.Request, body: ScoringBody) -> Scoring:
        adapter, manager = self._served.adapter(body.model), self._served.manager
        if not manager.engine_is_up:
            # The model, which decides how it scores, is unknown.
            manager.check_health()
        return body.scoring(request[CALLER], adapter, manager.info)

    async def _scores(self, request: web.Request, scoring: Scoring) -> tuple[str, list[Embedding], list[float]]:
        name, found = await self._vectors(request, "score", scoring)
        return name, found, await scoring.scores(found, self._served.turns)

    async def _vectors(self, request: web.Request, prefix: str, wanted: ParsedInputs) -> tuple[str, list[Embedding]]:
        """Return the answer's id, and the vector of each input."""
        name, manager = answer_id(prefix), self._served.manager
        name_answer(request, name)
        size = manager.info.embedding_size if manager.engine_is_up else 0
        if len(wanted.requests) * size > MAX_ELEMENTS:
            most = f"vectors of {size:,} elements for at most {MAX_ELEMENTS // size:,}"
            raise InvalidRequest(
                f"{len(wanted.requests):,} texts are too many for one request: the server answers with {most}", wanted.names(0)["prompt"]
            )
        return name, await embed_all(manager, wanted.requests, wanted.names)

    def _model(self, requests: list[PoolingRequest]) -> str:
        return requests[0].adapter or self._served.name
