"""The routes about the served model: /v1/models, /tokenize, /detokenize and /tokenizer_info."""

import time
from typing import Any

from aiohttp import web

from frontends.http.authentication import CALLER
from frontends.http.request_checks import Handler
from frontends.http.responses import json_response
from frontends.http.routes.served_model import ServedModel
from frontends.openai.tokenization import DetokenizeRequest, TokenizeRequest
from llmserve import GenerationRequest


class ModelRoutes:
    """The handlers. They name the model and its adapters, and use its tokenizer."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._created = int(time.time())
        self._tokenize = served.reader(TokenizeRequest)
        self._detokenize = served.reader(DetokenizeRequest)

    def routes(self) -> dict[str, Handler]:
        return {
            "GET /v1/models": self.models,
            "GET /v1/models/{model:.+}": self.one_model,
            "GET /tokenizer_info": self.tokenizer_info,
            "POST /tokenize": self.tokenize,
            "POST /detokenize": self.detokenize,
        }

    async def models(self, request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": [self._card(), *map(self._card, self._served.adapters)]})

    async def one_model(self, request: web.Request) -> web.Response:
        return json_response(self._card(self._served.adapter(request.match_info["model"])))

    async def tokenize(self, request: web.Request) -> web.Response:
        def make(body: TokenizeRequest) -> tuple[GenerationRequest, bool]:
            self._served.adapter(body.model)
            return body.generation_request(request[CALLER]), bool(body.return_token_strs)

        manager = self._served.manager
        wanted, strings = await self._served.read(request, self._tokenize, make)
        tokens = (await manager.tokenize(wanted)).token_ids
        strs = await manager.token_strings(tokens) if strings else None
        answer = {"count": len(tokens), "max_model_len": manager.info.max_model_len, "tokens": tokens, "token_strs": strs}
        return await self._served.turns.run(json_response, answer)

    async def tokenizer_info(self, request: web.Request) -> web.Response:
        return json_response(await self._served.manager.tokenizer_info())

    async def detokenize(self, request: web.Request) -> web.Response:
        model, tokens = await self._served.read(request, self._detokenize, lambda body: (body.model, body.tokens))
        self._served.adapter(model)
        return await self._served.turns.run(json_response, {"prompt": await self._served.manager.detokenize(tokens)})

    def _card(self, adapter: str | None = None) -> dict[str, Any]:
        name, manager = self._served.name, self._served.manager
        length = manager.info.max_model_len if manager.state == "ready" else None
        card = {"id": adapter or name, "object": "model", "created": self._created, "owned_by": "llmserve", "max_model_len": length}
        return card | ({"parent": name} if adapter else {})
