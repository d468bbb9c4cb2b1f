"""The routes of stored responses, in OpenAI's format."""

import re
from collections.abc import Awaitable, Callable
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
from frontends.responses.events import BEHIND
from frontends.responses.objects import ItemList, ResponseDeleted
from frontends.responses.stored import Kind, Name, Operation, ResponseStore, StoredResponse
from llmserve import InvalidRequest

PATH = "/v1/responses/{response_id}"
# Maximum bytes of a page of items, which a client that reads slowly holds; one item may have more.
PAGE_BYTES = 2**18


class _Named(msgspec.Struct):
    id: str


_ITEMS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[msgspec.Raw])
_NAMED = msgspec.json.Decoder(_Named)


class ResponseRoutes:
    """The handlers.

    Args:
        store: where responses are kept.
        turns: alternates the work on many items with the event loop.
        follow: answers with the events of a response from a `sequence_number` on.
    """

    def __init__(
        self, store: ResponseStore, turns: WorkQueue, follow: Callable[[web.Request, Name, int], Awaitable[web.StreamResponse]]
    ) -> None:
        self._store = store
        self._turns = turns
        self._follow = follow

    def routes(self) -> dict[str, Handler]:
        return {
            f"GET {PATH}": self.retrieve,
            f"DELETE {PATH}": self.delete,
            f"GET {PATH}/input_items": self.items,
            f"POST {PATH}/cancel": self.cancel,
        }

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        if not _streams(request):
            if "starting_after" in request.query:
                raise InvalidRequest("starting_after requires stream=true", "starting_after")
            return in_pieces((await self._ask("body", request)).body)
        number, name = _first_number(request), self._name(request)
        if await self._store.ask(Operation("events", name, place=BEHIND)) is None:
            await self._ask("body", request)
            raise InvalidRequest("stream: only a response with background: true and stream: true can be followed", "stream")
        return await self._follow(request, name, number)

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

    async def _ask(self, kind: Kind, request: web.Request) -> StoredResponse:
        """Return the response that the path names. A tenant cannot tell others' responses from unknown ones."""
        if not self._store.keeps:
            raise HTTPFailure(404, NOTHING_STORED, "not_found", param="response_id")
        name = self._name(request)
        found = await self._store.ask(Operation(kind, name))
        if found is None:
            words = f"there is no response {name.id[:64]!r}, or it is no longer kept"
            raise HTTPFailure(404, words, "not_found", param="response_id")
        return found

    def _name(self, request: web.Request) -> Name:
        return Name(request[CALLER].tenant, request.match_info["response_id"])


def _streams(request: web.Request) -> bool:
    """Return whether a query asks for events. Raises InvalidRequest."""
    sent = request.query.getall("stream", ["false"])
    if sent not in (["true"], ["false"]):
        raise InvalidRequest("stream must be true or false", "stream")
    return sent == ["true"]


def _first_number(request: web.Request) -> int:
    """Return the `sequence_number` of the first event that a query asks for. Raises InvalidRequest."""
    sent = request.query.getall("starting_after", [])
    if not sent:
        return 0
    if len(sent) != 1 or not re.fullmatch(r"\d{1,9}", sent[0], re.ASCII):
        raise InvalidRequest("starting_after must be the sequence_number of an event", "starting_after")
    return int(sent[0]) + 1


def _page(items: bytes, request: web.Request) -> bytes:
    """Return the page of items that a query asks for, which may be shorter. Raises InvalidRequest."""
    data, more = page(_ITEMS.decode(items)[::-1], request, _id)
    count = max(1, sum(size <= PAGE_BYTES for size in accumulate(len(memoryview(one)) for one in data)))
    shown = data[:count]
    first, last = (_id(shown[0]), _id(shown[-1])) if shown else (None, None)
    return sse.encode(ItemList(data=shown, first_id=first, last_id=last, has_more=more or count < len(data)))


def _id(item: msgspec.Raw) -> str:
    return _NAMED.decode(item).id
