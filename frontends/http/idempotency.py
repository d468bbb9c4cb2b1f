"""`Idempotency-Key`: a repeated POST gets the first one's response, and generates nothing.

This is for clients whose connection broke before they had read the response. As in the IETF draft,
the same key with another body is 422, and 409 while the first request is still being answered. Only
complete responses are kept: a request that failed, or whose client has gone, is generated again.
"""

import asyncio
import hashlib
import re
from typing import Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.http.authentication import CALLER, path_of
from frontends.http.event_stream import RECORD
from frontends.http.idempotency_store import HEADER, MAX_ANSWER, CachedResponse, Name, ResponseCache
from frontends.http.request_checks import Handler, read, takes_form
from frontends.openai.errors import HTTPFailure

REPLAYED = "Idempotent-Replayed"

_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)


class IdempotencyStore(Protocol):
    """A store of responses, in this process or shared by several processes."""

    async def begin(self, name: Name, body: bytes) -> Any:
        """Return the `CachedResponse`, or a claim to answer the request, which `end` must follow.

        Raises HTTPFailure if the first request is still being answered or had another body. A
        caller that is cancelled here has no claim.
        """

    def end(self, claim: Any, kind: str = "", answer: bytes | None = None) -> None:
        """End a claim, with the complete response if there is one."""


def answer_once(memory: IdempotencyStore | None) -> Middleware:
    """Return a middleware that uses the store `memory`; None creates a store for this process."""
    memories = [memory] if memory is not None else []

    @web.middleware
    async def idempotent(request: web.Request, handler: Handler) -> web.StreamResponse:
        key = request.headers.get(HEADER)
        # An upload is too large to compare, and to repeat it creates another file.
        if key is None or request.method != "POST" or takes_form(request):
            return await handler(request)
        if not _KEY.fullmatch(key):
            raise HTTPFailure(400, f"{HEADER} must have 1 to 255 printable ASCII characters", "invalid_idempotency_key")
        if not memories:
            # Created here, because it needs the running event loop.
            memories.append(ResponseCache(asyncio.get_running_loop().time))
        (mine,) = memories
        caller = request[CALLER]
        name = Name(caller.tenant, caller.key, path_of(request), key)
        found = await mine.begin(name, hashlib.sha256(await read(request)).digest())
        if isinstance(found, CachedResponse):
            return web.Response(body=found.answer, headers={"Content-Type": found.kind, REPLAYED: "true"})
        kind, answer = "", None
        try:
            response = await handler(request)
            kind, answer = response.headers.get("Content-Type", ""), _complete(response)
            return response
        finally:
            mine.end(found, kind, answer)

    return idempotent


def _complete(response: web.StreamResponse) -> bytes | None:
    """Return the body of a complete response that is small enough to keep; else None."""
    if response.status != 200:
        return None
    body = response.body if isinstance(response, web.Response) else response.get(RECORD)
    return body if isinstance(body, bytes) and len(body) <= MAX_ANSWER else None
