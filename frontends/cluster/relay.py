"""An HTTP request carried to a replica's own server, and its answer back, as messages."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path

import aiohttp
import attrs
from aiohttp import hdrs
from yarl import URL

# Of one connection alone, which is not the one that the message travels on.
HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"})
EVENTS = "text/event-stream"


@attrs.frozen
class RelayedRequest:
    """A request; `path` with its query, as it was sent."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> str:
        return _value(self.headers, name)


@attrs.frozen
class ReplicaAccepted:
    """The first message of an answer: which replica it comes from."""

    replica: str


@attrs.frozen
class ResponseHead:
    """The second one. Chunks of the body follow, and what is an event is never cut in two."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        return _value(self.headers, name)

    @property
    def is_events(self) -> bool:
        return self.get(hdrs.CONTENT_TYPE).startswith(EVENTS)


Message = ReplicaAccepted | ResponseHead | bytes
# A part of a body that is empty: there is nothing to say, and somebody to say it.
BEAT = b""


def _value(headers: tuple[tuple[str, str], ...], name: str) -> str:
    return next((value for key, value in headers if key.lower() == name.lower()), "")


def end_to_end(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if name.lower() not in HOP_BY_HOP)


async def with_beats(messages: AsyncGenerator[Message, None], seconds: float) -> AsyncGenerator[Message, None]:
    """The same, and a BEAT whenever nothing has come for so long. Closes `messages`."""
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
    """To a server on a unix socket. Leaving an answer before its end closes its connection, which the server takes for a client that has
    gone."""

    def __init__(self, path: Path) -> None:
        # A connection for each request: one that is kept may be closed by the server in the moment when it is used again.
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
        # Put together from its parts: joined as a reference, "//evil/metrics" is the path /metrics of the host "evil", and "//[" no URL.
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
