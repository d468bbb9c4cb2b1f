"""Relays HTTP requests to a replica's HTTP server, and answers back, as messages."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path

import aiohttp
import attrs
from aiohttp import hdrs
from yarl import URL

# Headers that apply to a single connection and are not relayed.
HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"})
EVENTS = "text/event-stream"


@attrs.frozen
class RelayedRequest:
    """A request. `path` includes the query, as the client sent it."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> str:
        return _value(self.headers, name)


@attrs.frozen
class ReplicaAccepted:
    """The first message of an answer, with the id of the replica."""

    replica: str


@attrs.frozen
class ResponseHead:
    """The second message of an answer. Chunks of the body follow, each with whole events."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        return _value(self.headers, name)

    @property
    def is_events(self) -> bool:
        return self.get(hdrs.CONTENT_TYPE).startswith(EVENTS)


Message = ReplicaAccepted | ResponseHead | bytes
# An empty chunk: the replica is alive but has nothing to send.
BEAT = b""


def _value(headers: tuple[tuple[str, str], ...], name: str) -> str:
    return next((value for key, value in headers if key.lower() == name.lower()), "")


def end_to_end(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if name.lower() not in HOP_BY_HOP)


async def with_beats(messages: AsyncGenerator[Message, None], seconds: float) -> AsyncGenerator[Message, None]:
    """Yield `messages`, and a BEAT after each `seconds` without a message. Closes `messages`."""
    async with aclosing(messages):
        while True:
            coming = asyncio.ensure_future(anext(messages))
            try:
                while not (await asyncio.wait((coming,), timeout=seconds))[0]:
                    yield BEAT
                try:
                    message = await coming
                except StopAsyncIteration:
                    return
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait((coming,))
            yield message


class Relay:
    """Relays requests to an HTTP server on a unix socket.

    Closing an answer before its end closes its connection, so that the server cancels the request.
    """

    def __init__(self, path: Path) -> None:
        # One connection per request: the server might close a kept connection just when it is
        # reused.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path), limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, asked: RelayedRequest) -> AsyncGenerator[Message, None]:
        path, _, query = asked.path.partition("?")
        # The URL is built from its parts. As a relative reference, "//evil/metrics" would be the
        # path /metrics on the host "evil", and "//[" would be invalid.
        url = URL.build(scheme="http", host="localhost", path=path, query_string=query, encoded=True)
        async with self._session.request(
            asked.method, url, headers=list(asked.headers), data=asked.body or None, allow_redirects=False
        ) as response:
            head = ResponseHead(response.status, end_to_end(response.headers.items()))
            yield head
            rest = b""
            async for chunk in response.content.iter_any():
                if not head.is_events:
                    yield chunk
                    continue
                whole, separator, rest = (rest + chunk).rpartition(b"\n\n")
                if separator:
                    yield whole + separator
            if rest:
                yield rest
