"""Takes accepted connections in, as far as there are places for them; for any wire."""

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
# asyncio gives a TLS connection 30 s to end, and counts what the client is still reading. `WriteWatch` has the deadline instead.
SHUTDOWN_SECONDS = 86_400.0
RETRY_SECONDS = 0.1
# How often `empty` looks.
LOOK_SECONDS = 0.01


class ConnectionProtocol(Protocol):
    """A connection's protocol. `made`: it has had a transport; from then on it says itself when it has left."""

    made: bool


class Acceptor:
    """`make(left)` makes the protocol of a connection, which calls `left()` when it is lost. `refusal` is what one too many is told, where
    there is no TLS to say it in."""

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
        """Serve it, or say that there is no place. Before anything is made of it: one too many costs one system call."""
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
            # Gone before it was here, or no TLS that this server takes.
            pass
        finally:
            if not guest.made:
                self.limiter.leave(peer)
                connection.close()

    async def close(self) -> None:
        """Let go of those who are still shaking hands."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def empty(self, seconds: float) -> None:
        """Wait until no connection is open, for `seconds` at most."""
        with anyio.move_on_after(seconds):
            while self.limiter.inside:  # noqa: ASYNC110 - a door is shared by listeners, and has no event
                await anyio.sleep(LOOK_SECONDS)

    async def accept(self, listener: socket.socket) -> None:
        """Welcome everybody who comes, one at a time: asyncio's own server would accept a whole backlog before it asked whether there is a
        descriptor left."""
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError:
                # Gone in the line, or no descriptor: those that are open will end some day.
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.serve(connection)
            await asyncio.sleep(0)


@asynccontextmanager
async def listen(acceptor: Acceptor, *listeners: socket.socket, patience: Callable[[], float] = lambda: 0.0) -> AsyncIterator[None]:
    """Accept connections from listening sockets, which are closed at the end. Where there is `patience` then, in seconds, connections that
    wait to be accepted are served too, and those that are open may end by themselves."""
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


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections whose clients have connected already. A listener that closes resets them."""
    while True:
        try:
            yield listener.accept()[0]
        except OSError:
            # Most likely because there is none left.
            return


def _peer(connection: socket.socket) -> str:
    """Its address; empty for a unix socket, and for one that is gone already."""
    try:
        address = connection.getpeername()
    except OSError:
        return ""
    return str(address[0]) if isinstance(address, tuple) else ""
