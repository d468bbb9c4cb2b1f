"""`Idempotency-Key`: a POST that is sent again gets the answer that the first one had, and generates nothing.

For clients whose connection broke before they had read the answer. As the IETF's draft has it, the same key with another body is 422, and
409 while the first one is still being answered. Only answers that were complete are kept: what failed, or was left by its client, is begun
anew.
"""

import asyncio
import hashlib
import re
from typing import Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.http.authentication import CALLER, route_of
from frontends.http.event_stream import RECORD
from frontends.http.idempotency_store import HEADER, MAX_ANSWER, CachedResponse, Name, ResponseCache
from frontends.http.request_checks import Handler, read
from frontends.openai.errors import HTTPFailure

REPLAYED = "Idempotent-Replayed"

_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)


class IdempotencyStore(Protocol):
    """Where answers are kept: here, or where several processes share them."""

    async def begin(self, name: Name, body: bytes) -> Any:
        """The `CachedResponse` answer that there was, or a claim for a request that is to be answered now, which `end` must follow.

        Raises HTTPFailure for one that is being answered, and for another body. A caller that is cancelled here has no claim.
        """

    def end(self, claim: Any, kind: str = "", answer: bytes | None = None) -> None:
        """It has been answered, or not."""


def answer_once(memory: IdempotencyStore | None) -> Middleware:
    """A middleware; without a `memory` it has one of its own."""
    memories = [memory] if memory is not None else []

    @web.middleware
    async def idempotent(request: web.Request, handler: Handler) -> web.StreamResponse:
        key = request.headers.get(HEADER)
        if key is None or request.method != "POST":
            return await handler(request)
        if not _KEY.fullmatch(key):
            raise HTTPFailure(400, f"{HEADER} takes 1 to 255 printable ASCII characters", "invalid_idempotency_key")
        if not memories:
            # Made here, where there is an event loop.
            memories.append(ResponseCache(asyncio.get_running_loop().time))
        (mine,) = memories
        caller = request[CALLER]
        name = Name(caller.tenant, caller.key, route_of(request), key)
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
    """All of an answer that was complete and is small enough to keep; None of any other."""
    if response.status != 200:
        return None
    body = response.body if isinstance(response, web.Response) else response.get(RECORD)
    return body if isinstance(body, bytes) and len(body) <= MAX_ANSWER else None
