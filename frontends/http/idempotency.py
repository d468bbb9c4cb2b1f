"""`Idempotency-Key`: a POST that is sent again gets the answer that the first one had, and generates nothing.

For clients whose connection broke before they had read the answer. As the IETF's draft has it, the same key with another body is 422, and
409 while the first one is still being answered. Only answers that were complete are kept: what failed, or was left by its client, is begun
anew.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.errors import HTTPFailure
from frontends.event_stream import RECORD
from frontends.http.form import Handler, read
from frontends.http.who import CALLER, route_of

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
# As long as a client may be expected to try again, and as much as it may cost to remember; then the oldest are forgotten.
KEEP_SECONDS = 600.0
KEEP_BYTES = 64 * 2**20
# One that is larger is not kept.
MOST_ANSWER = 2**20
# Of one entry beside its answer.
OVERHEAD = 1024
RETRY_AFTER = "1"
REUSED, CONFLICT = "idempotency_key_reused", "idempotency_conflict"

_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)

# What a key means belongs to who sent it and where to: the API key's id, the route, the key.
Name = tuple[str | None, str | None, str]


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A complete answer, and of which body it is."""

    body: bytes
    until: float
    kind: str
    answer: bytes


class Memory(Protocol):
    """Where answers are kept: here, or where several processes share them."""

    async def begin(self, name: Name, body: bytes) -> Kept | None:
        """The answer that there was; None for a request that is to be answered now, which `end` must follow.

        Raises HTTPFailure for one that is being answered, and for another body.
        """

    def end(self, name: Name, kind: str = "", answer: bytes | None = None) -> None:
        """It has been answered, or not."""


class Answers:
    """A bounded memory. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float], most_bytes: int = KEEP_BYTES) -> None:
        self._clock = clock
        self._most = most_bytes
        self._kept: OrderedDict[Name, Kept] = OrderedDict()
        self._running: dict[Name, bytes] = {}
        self.bytes = 0

    async def begin(self, name: Name, body: bytes) -> Kept | None:
        return self.claim(name, body)

    def claim(self, name: Name, body: bytes) -> Kept | None:
        """`begin`, at once."""
        while self._kept and next(iter(self._kept.values())).until <= self._clock():
            self._forget_oldest()
        kept = self._kept.get(name)
        if (kept.body if kept is not None else self._running.get(name, body)) != body:
            raise HTTPFailure(422, f"this {HEADER} was used for another request", REUSED)
        if kept is None and name in self._running:
            raise HTTPFailure(409, "the first request with this key is still being answered", CONFLICT, {"Retry-After": RETRY_AFTER})
        if kept is None:
            self._running[name] = body
        return kept

    def end(self, name: Name, kind: str = "", answer: bytes | None = None) -> None:
        body = self._running.pop(name)
        if answer is None or len(answer) > MOST_ANSWER:
            return
        self._kept[name] = Kept(body, self._clock() + KEEP_SECONDS, kind, answer)
        self.bytes += OVERHEAD + len(answer)
        while self.bytes > self._most:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self.bytes -= OVERHEAD + len(kept.answer)


def answer_once(memory: Memory | None) -> Middleware:
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
            memories.append(Answers(asyncio.get_running_loop().time))
        (mine,) = memories
        name = request[CALLER].key, route_of(request), key
        kept = await mine.begin(name, hashlib.sha256(await read(request)).digest())
        if kept is not None:
            return web.Response(body=kept.answer, headers={"Content-Type": kept.kind, REPLAYED: "true"})
        kind, answer = "", None
        try:
            response = await handler(request)
            kind, answer = response.headers.get("Content-Type", ""), _complete(response)
            return response
        finally:
            mine.end(name, kind, answer)

    return idempotent


def _complete(response: web.StreamResponse) -> bytes | None:
    """All of an answer that was complete; None of any other."""
    if response.status != 200:
        return None
    if isinstance(response, web.Response):
        return response.body if isinstance(response.body, bytes) else None
    return response.get(RECORD)
