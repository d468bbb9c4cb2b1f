"""The routes of stored responses, in OpenAI's format."""

from typing import Any

import msgspec
from aiohttp import web

from frontends.http.authentication import CALLER
from frontends.http.request_checks import Handler
from frontends.http.responses import JSON, json_response
from frontends.http.routes.paging import page
from frontends.openai.errors import HTTPFailure
from frontends.openai.unsupported import NOTHING_STORED
from frontends.responses.objects import ItemList, ResponseDeleted
from frontends.responses.stored import Name, Operation, ResponseStore, StoredResponse
from llmserve import InvalidRequest

PATH = "/v1/responses/{response_id}"


class ResponseRoutes:
    """The handlers."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

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
        return _whole(await self._ask("body", request))

    async def delete(self, request: web.Request) -> web.Response:
        await self._ask("delete", request)
        return json_response(ResponseDeleted(id=request.match_info["response_id"]))

    async def items(self, request: web.Request) -> web.Response:
        found = await self._ask("get", request)
        items: list[dict[str, Any]] = msgspec.json.decode(found.items)
        data, more = page(items[::-1], request, lambda one: one["id"])
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return json_response(ItemList(data=data, first_id=first, last_id=last, has_more=more))

    async def cancel(self, request: web.Request) -> web.Response:
        found = await self._ask("cancel", request)
        if not found.background:
            raise InvalidRequest("response_id: only a response with background: true can be cancelled", "response_id")
        return _whole(found)

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


def _whole(found: StoredResponse) -> web.Response:
    return web.Response(body=found.body, content_type=JSON)
