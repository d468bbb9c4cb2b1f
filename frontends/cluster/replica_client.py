"""Sends requests to the replicas' HTTP servers, on TCP connections of its own.

No byte passes through Ray, whose messages cost more than a token: through its streams the first
token came 12 ms later.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import attrs
from aiohttp import hdrs
from yarl import URL

from frontends.cluster.relay import SECRET, RelayedRequest, ResponseHead, end_to_end
from frontends.cluster.replica_directory import ReplicaAddress
from frontends.http.errors import last_event
from frontends.net.listeners import probe
from frontends.openai.sse import END
from llmserve import EngineRestarted

T = TypeVar("T")

# Maximum seconds until a replica has accepted the connection, and until it asks for the body, which
# it does immediately, before admission. A replica on an unreachable host stays silent.
TAKE_SECONDS = 2.5
RETRY_MS = "Retry-After-Ms"
# The status for a request with the secret of another replica: "misdirected request".
NOT_YOURS = 421
# Requests without a body that a replica answers when it has asked the other replicas or its engine.
GATHERED = ("/metrics", "/load", "/health/generate")
# Seconds of silence before the kernel's first probe of a connection, then between probes, and their
# number. A replica that is about to end reports no more, so its silence says nothing.
UNREACHABLE = {socket.TCP_KEEPIDLE: 4, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 10_000}


class Lost(Exception):
    """The replica with the request has died or is unreachable."""


class NotAccepted(Exception):
    """The replica has not accepted the request in time."""


class ReplicaClient:
    """The connections of one ingress to all replicas."""

    def __init__(self) -> None:
        # One connection per request: the replica might close a kept connection just when it is
        # reused.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_probed_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=TAKE_SECONDS),
            skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
            auto_decompress=False,
        )
        self.answers: set[Answer] = set()

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, place: ReplicaAddress, asked: RelayedRequest) -> "Answer":
        """Return an answer that has begun: its whole body has come, or its first events.

        Raises NotAccepted, Lost.
        """
        answer = Answer(place.replica, asked.path.partition("?")[0])
        self.answers.add(answer)
        answer.closed = self.answers.discard
        try:
            await answer.begin(self._session, place, asked)
        except BaseException:
            answer.close()
            raise
        return answer


@attrs.define(eq=False)
class Answer:
    """One replica's answer. `body` is the complete body, or the first events of a stream.

    Attributes:
        replica: the replica's id.
        path: the path of the request, which decides about the format of an error.
        closed: called at the end.
    """

    replica: str
    path: str = ""
    head: ResponseHead = attrs.field(factory=lambda: ResponseHead(0, ()))
    body: bytes = b""
    closed: Callable[["Answer"], None] = lambda _: None
    _response: aiohttp.ClientResponse | None = None
    # The time of the last byte, and the timeout of a read that waits for the next one.
    _heard: float = attrs.field(factory=lambda: asyncio.get_running_loop().time())
    _reading: asyncio.Timeout | None = None
    _is_lost: bool = False
    _rest: bytes = b""

    async def begin(self, session: aiohttp.ClientSession, place: ReplicaAddress, asked: RelayedRequest) -> None:
        try:
            async with asyncio.timeout(None if _takes_long(asked) else TAKE_SECONDS) as taking:
                response = self._response = await self._wait(session.request(**_arguments(place, asked, lambda: taking.reschedule(None))))
                taking.reschedule(None)
        except (TimeoutError, aiohttp.ClientConnectorError) as error:
            # Also aiohttp's own timeout of a connection.
            raise (Lost if self._is_lost else NotAccepted) from error
        except aiohttp.ClientError as error:
            raise Lost from error
        if response.status == NOT_YOURS:
            # Another replica has the address of one that is gone.
            raise NotAccepted
        self.head = ResponseHead(response.status, end_to_end(response.headers.items()))
        if self.head.is_events:
            self.body = await self._events()
        else:
            self.body = await self._read(response.read())
            self.close()

    @property
    def retry_after(self) -> float:
        """The seconds of a refusal's Retry-After."""
        value = self.head.get(RETRY_MS)
        return float(value) / 1000 if value else float("inf")

    async def events(self) -> AsyncIterator[bytes]:
        """Yield all events; the last one is an error if the replica dies before the end."""
        chunk = self.body
        try:
            while chunk:
                yield chunk
                chunk = await self._events()
        except Lost:
            yield last_event(EngineRestarted("the replica died before the answer was complete"), self.path)
        finally:
            self.close()

    def close(self) -> None:
        """End the answer; the replica cancels its request if it has not completed it."""
        if self._response is not None:
            self._response.close()
        self.closed(self)

    def lose(self, silent_since: float) -> None:
        """Give the answer up if no byte has come since this time; its reader gets Lost."""
        if self._reading is not None and self._heard < silent_since:
            self._is_lost = True
            self._reading.reschedule(0)

    async def _events(self) -> bytes:
        """Return the next whole events, or nothing at the end. Raises Lost."""
        assert self._response is not None
        while chunk := await self._read(self._response.content.readany()):
            whole, separator, self._rest = (self._rest + chunk).rpartition(END)
            if separator:
                return whole + separator
        rest, self._rest = self._rest, b""
        return rest

    async def _read(self, coming: Awaitable[bytes]) -> bytes:
        try:
            return await self._wait(coming)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Lost from error

    async def _wait(self, coming: Awaitable[T]) -> T:
        """Wait until `coming` is there or the replica is lost. Raises TimeoutError."""
        try:
            async with asyncio.timeout(None) as self._reading:
                return await coming
        finally:
            self._reading = None
            self._heard = asyncio.get_running_loop().time()


def _takes_long(asked: RelayedRequest) -> bool:
    """Whether a replica that works may not answer a request at once. It asks for a body at once."""
    return not asked.body and asked.path.startswith(GATHERED)


def _probed_socket(address: Any) -> socket.socket:
    """Return a socket that fails soon after the other host has become unreachable."""
    family, kind, protocol, _, _ = address
    found = socket.socket(family, kind, protocol)
    probe(found, UNREACHABLE)
    return found


def _arguments(place: ReplicaAddress, asked: RelayedRequest, accepted: Callable[[], None]) -> dict[str, Any]:
    """Return the arguments of aiohttp's request. `accepted` is called when the replica asks for the body."""

    async def body() -> AsyncIterator[bytes]:
        accepted()
        yield asked.body

    path, _, query = asked.path.partition("?")
    # The URL is built from its parts. As a relative reference, "//evil/metrics" would be the path
    # /metrics on the host "evil", and "//[" would be invalid.
    url = URL.build(scheme="http", host=place.host, port=place.port, path=path, query_string=query, encoded=True)
    # aiohttp takes names in different case for different headers, and would drop one.
    headers = [*((name.lower(), value) for name, value in asked.headers), (SECRET, place.secret)]
    found = {"method": asked.method, "url": url, "headers": headers, "allow_redirects": False}
    if asked.body:
        headers.append((hdrs.CONTENT_LENGTH, str(len(asked.body))))
        found |= {"data": body(), "expect100": True}
    return found
