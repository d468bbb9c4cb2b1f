"""Accepts connections within the connection limits, for all wire protocols."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, cast

import anyio

from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.listeners import is_stranger
from frontends.net.tls import TLS

HANDSHAKE_SECONDS = 10.0
# asyncio gives a TLS connection 30 s to close, including the time in which the client still reads.
# `WriteWatch` enforces the time limit instead.
SHUTDOWN_SECONDS = 86_400.0
RETRY_SECONDS = 0.1
# Seconds between two looks of `empty`.
LOOK_SECONDS = 0.01


class ConnectionProtocol(Protocol):
    """A connection's protocol.

    Attributes:
        made: whether the protocol has had a transport. From then on it reports its own end.
    """

    made: bool


class Acceptor:
    """Accepts connections and creates their protocols.

    Args:
        make: `make(left)` creates a connection's protocol, which calls `left()` when the connection
            is lost.
        refusal: the bytes that are sent to a rejected connection, unless the server uses TLS.
    """

    def __init__(
        self, make: Callable[[Callable[[], None]], ConnectionProtocol], refusal: bytes, limiter: ConnectionLimiter, tls: TLS | None = None
    ) -> None:
        self.limiter = limiter
        self._make = make
        self._refusal = refusal
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, connection: socket.socket) -> None:
        """Serve a connection, or reject it.

        Rejection comes before any protocol or task exists, so a rejected connection costs one
        system call.
        """
        connection.setblocking(False)
        peer = _peer(connection)
        if not self.limiter.strangers and is_stranger(connection):
            connection.close()
        elif self.limiter.enter(peer):
            task = self._loop.create_task(self._begin(connection, peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            with connection, suppress(OSError):
                if self._tls is None:
                    connection.send(self._refusal)

    async def _begin(self, connection: socket.socket, peer: str) -> None:
        guest = self._make(lambda: self.limiter.leave(peer))
        protocol = cast("asyncio.Protocol", guest)
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls.context, "ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": SHUTDOWN_SECONDS}
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection, **tls)
        except OSError:
            # The client has gone, or the TLS handshake failed.
            pass
        finally:
            if not guest.made:
                self.limiter.leave(peer)
                connection.close()

    async def close(self) -> None:
        """Cancel the connections whose TLS handshake is not complete."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def empty(self, seconds: float) -> None:
        """Wait until no connection is open, for `seconds` at most."""
        with anyio.move_on_after(seconds):
            while self.limiter.inside:  # noqa: ASYNC110 - listeners share the limiter, which has no event
                await anyio.sleep(LOOK_SECONDS)

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections one at a time.

        asyncio's server would accept its whole listen backlog before it checks for a free
        descriptor.
        """
        while True:
            self.serve(await accept_one(listener))
            await asyncio.sleep(0)


@asynccontextmanager
async def listen(acceptor: Acceptor, *listeners: socket.socket, patience: Callable[[], float] = lambda: 0.0) -> AsyncIterator[None]:
    """Accept connections from listening sockets, and close the sockets at the end.

    If `patience` then returns more than 0 seconds, connections in the listen backlog are served
    too. Open connections get that time to end by themselves.
    """
    loop = asyncio.get_running_loop()
    for listener in listeners:
        listener.setblocking(False)
    accepting = [loop.create_task(acceptor.accept(listener)) for listener in listeners]
    try:
        yield
    finally:
        for task in accepting:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait(accepting)
            seconds = patience()
            for listener in listeners:
                for connection in accept_waiting(listener) if seconds > 0 else ():
                    acceptor.serve(connection)
                listener.close()
            await acceptor.empty(seconds)
            await acceptor.close()


async def accept_one(listener: socket.socket) -> socket.socket:
    """Wait for a connection and return it. A cancellation leaves it in the listen backlog.

    asyncio's `sock_accept` drops an accepted connection if its task is cancelled before it resumes.
    """
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            await anyio.wait_readable(listener)
        except OSError:
            # The client has gone, or no descriptor is free until an open connection ends.
            await asyncio.sleep(RETRY_SECONDS)


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections in the listen backlog, which closing the listener would reset."""
    while True:
        try:
            yield listener.accept()[0]
        except OSError:
            # The listen backlog is most likely empty.
            return


def _peer(connection: socket.socket) -> str:
    """Return the peer's address; empty for a unix socket and for a client that has gone."""
    try:
        address = connection.getpeername()
    except OSError:
        return ""
    return str(address[0]) if isinstance(address, tuple) else ""
