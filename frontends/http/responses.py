"""Responses with a JSON body."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from frontends.http.idempotency_store import MAX_ANSWER
from frontends.openai import sse
from llmserve.runtime.heap import return_free_pages

JSON = "application/json"
# Bytes of a body that a connection buffers, because its client may not read. The rest follows as the
# client reads.
PIECE = 2**16


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=sse.encode(body), status=status, content_type=JSON, headers=headers)


def in_pieces(body: bytes) -> web.Response:
    """Return a response with JSON, of which a client that does not read takes no second copy."""
    return web.Response(body=body if len(body) <= PIECE else _pieces(body), content_type=JSON)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), PIECE):
        yield body[begin : begin + PIECE]


async def whole_response(parts: AsyncIterator[bytes]) -> web.Response:
    """Return an answer as one body, or in parts if it is too large for an `Idempotency-Key`."""
    begin: list[bytes] = []
    async for part in parts:
        begin.append(part)
        if sum(map(len, begin)) > MAX_ANSWER:
            return web.Response(body=_joined(begin, parts), content_type=JSON)
    return web.Response(body=b"".join(begin), content_type=JSON)


async def _joined(begin: list[bytes], parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        while begin:
            yield begin.pop(0)
        async for part in parts:
            yield part
    finally:
        # Called later, when these frames no longer hold the completions.
        asyncio.get_running_loop().call_soon(return_free_pages)
