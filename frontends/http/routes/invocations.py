"""POST /invocations: SageMaker sends every request there, and a body's fields tell for which route it is."""

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from frontends.http.request_checks import Handler, read
from frontends.http.routes.served_model import ServedModel
from frontends.openai.decoding import decode
from llmserve import InvalidRequest
from llmserve.pooling.requests import CLASSIFY

PATH = "/invocations"
# The route for each field; a body with several of them is for the first one, as in vLLM.
ROUTES = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
    "query": "/rerank",
    **dict.fromkeys(("queries", "text_1", "data_1"), "/score"),
}

_FIELDS: Any = msgspec.defstruct("Fields", [(name, msgspec.Raw, msgspec.Raw()) for name in ROUTES])
_DECODER = msgspec.json.Decoder(_FIELDS)


class InvocationRoute:
    """The handler. `handlers` are those of the routes, by method and path."""

    def __init__(self, served: ServedModel, handlers: Mapping[str, Handler]) -> None:
        self._served = served
        self._handlers = handlers

    def routes(self) -> dict[str, Handler]:
        return {f"POST {PATH}": self.answer}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = route_of(await read(request))
        manager = self._served.manager
        if path == "/v1/embeddings" and manager.engine_is_up and CLASSIFY in manager.info.tasks:
            path = "/classify"
        return await self._handlers[f"POST {path}"](request)


def route_of(body: bytes) -> str:
    """Return the route that a body is for. Raises InvalidRequest."""
    found = decode(_DECODER, body)
    for name, path in ROUTES.items():
        if bytes(memoryview(getattr(found, name))[:4]) not in (b"", b"null"):
            return path
    raise InvalidRequest(f"the body of {PATH} needs one of the fields {', '.join(ROUTES)}")
