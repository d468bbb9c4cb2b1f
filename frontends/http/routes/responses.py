"""The routes of stored responses, in OpenAI's format."""

from itertools import accumulate
from typing import Any

import msgspec
from aiohttp import web

from frontends.http.authentication import CALLER
from frontends.http.request_checks import Handler
from frontends.http.responses import JSON, in_pieces, json_response
from frontends.http.routes.paging import page
from frontends.net.turns import WorkQueue
from frontends.openai import sse
from frontends.openai.errors import HTTPFailure
from frontends.openai.unsupported import NOTHING_STORED
from frontends.responses.objects import ItemList, ResponseDeleted
from frontends.responses.stored import Name, Operation, ResponseStore, StoredResponse
from llmserve import InvalidRequest

PATH = "/v1/responses/{response_id}"
# Maximum bytes of a page of items, which a client that reads slowly holds; one item may have more.
PAGE_BYTES = 2**18


class _Named(msgspec.Struct):
    id: str


_ITEMS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[msgspec.Raw])
_NAMED = msgspec.json.Decoder(_Named)


class ResponseRoutes:
    """The handlers. `turns` alternates the work on many items with the event loop."""

    def __init__(self, store: ResponseStore, turns: WorkQueue) -> None:
        self._store = store
        self._turns = turns

    def routes(self) -> dict[str, Handler]:
        return {
            f"GET {PATH}": self.retrieve,
            f"DELETE {PATH}": self.delete,
            f"GET {PATH}/input_items": self.items,
            f"POST {PATH}/cancel": self.cancel,
        }

    async def retrieve(self, request: web.Request) -> web.Response:
        if request.query.get("stream", "false").lower() != "false":
            raise InvalidRequest("stream: a stored response is returned whole", "stream")
        return in_pieces((await self._ask("body", request)).body)

    async def delete(self, request: web.Request) -> web.Response:
        await self._ask("delete", request)
        return json_response(ResponseDeleted(id=request.match_info["response_id"]))

    async def items(self, request: web.Request) -> web.Response:
        found = await self._ask("get", request)
        return in_pieces(await self._turns.run(_page, found.items, request))

    async def cancel(self, request: web.Request) -> web.Response:
        found = await self._ask("cancel", request)
        if not found.background:
            raise InvalidRequest("response_id: only a response with background: true can be cancelled", "response_id")
        return web.Response(body=found.body, content_type=JSON)

    async def _ask(self, operation: Operation, request: web.Request) -> StoredResponse:
        """Return the response that the path names. A tenant cannot tell others' responses from unknown ones."""
        if not self._store.keeps:
            raise HTTPFailure(404, NOTHING_STORED, "not_found", param="response_id")
        name = request.match_info["response_id"]
        found = await self._store.ask(operation, Name(request[CALLER].tenant, name))
        if found is None:
            words = f"there is no response {name[:64]!r}, or it is no longer kept"
            raise HTTPFailure(404, words, "not_found", param="response_id")
        return found


def _page(items: bytes, request: web.Request) -> bytes:
    """Return the page of items that a query asks for, which may be shorter. Raises InvalidRequest."""
    data, more = page(_ITEMS.decode(items)[::-1], request, _name)
    count = max(1, sum(size <= PAGE_BYTES for size in accumulate(len(memoryview(one)) for one in data)))
    shown = data[:count]
    first, last = (_name(shown[0]), _name(shown[-1])) if shown else (None, None)
    return sse.encode(ItemList(data=shown, first_id=first, last_id=last, has_more=more or count < len(data)))


def _name(item: msgspec.Raw) -> str:
    return _NAMED.decode(item).id
