"""The routes about the served model: /v1/models, /tokenize and /detokenize."""

from typing import Any

from aiohttp import web

from frontends.http.request_checks import Handler
from frontends.http.responses import json_response
from frontends.http.routes.served_model import ServedModel
from frontends.openai.requests import DetokenizeRequest, TokenizeRequest
from llmserve import GenerationRequest


class ModelRoutes:
    """The handlers. They name the model and its adapters, and use its tokenizer."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._tokenize = served.reader(TokenizeRequest)
        self._detokenize = served.reader(DetokenizeRequest)

    def routes(self) -> dict[str, Handler]:
        return {
            "GET /v1/models": self.models,
            "GET /v1/models/{model:.+}": self.one_model,
            "POST /tokenize": self.tokenize,
            "POST /detokenize": self.detokenize,
        }

    async def models(self, request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": [self._card(), *map(self._card, self._served.adapters)]})

    async def one_model(self, request: web.Request) -> web.Response:
        return json_response(self._card(self._served.adapter(request.match_info["model"])))

    async def tokenize(self, request: web.Request) -> web.Response:
        def make(body: TokenizeRequest) -> GenerationRequest:
            self._served.adapter(body.model)
            return body.generation_request()

        manager = self._served.manager
        prompt = await manager.tokenize(await self._served.read(request, self._tokenize, make))
        answer = {"count": len(prompt.token_ids), "max_model_len": manager.info.max_model_len, "tokens": prompt.token_ids}
        return await self._served.turns.run(json_response, answer)

    async def detokenize(self, request: web.Request) -> web.Response:
        model, tokens = await self._served.read(request, self._detokenize, lambda body: (body.model, body.tokens))
        self._served.adapter(model)
        return await self._served.turns.run(json_response, {"prompt": await self._served.manager.detokenize(tokens)})

    def _card(self, adapter: str | None = None) -> dict[str, Any]:
        name, manager = self._served.name, self._served.manager
        length = manager.info.max_model_len if manager.state == "ready" else None
        card = {"id": adapter or name, "object": "model", "created": 0, "owned_by": "llmserve", "max_model_len": length}
        return card | ({"parent": name} if adapter else {})
