"""The raw-socket server, for a manager that the caller enters and leaves (docs/protocol.md)."""

import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio

from frontends.access.control import Access
from frontends.net.acceptor import Acceptor, listen
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.flush import MAX_HOLD, FlushScheduler
from frontends.net.listeners import CannotListen, UnixAccess, bind_all, bind_unix
from frontends.net.receive_budget import ReceiveBudget
from frontends.net.tls import TLS
from frontends.rawsocket import frames
from frontends.rawsocket.addresses import Address
from frontends.rawsocket.connection import Connection
from frontends.rawsocket.service import Service
from llmserve import EngineManager

REFUSAL = frames.encode(frames.Error(0, "FrameError", "the server's connection limit is reached"))


@asynccontextmanager
async def open_server(
    manager: EngineManager,
    model: str,
    addresses: Sequence[Address],
    *,
    tls: TLS | None = None,
    access: Access | None = None,
    max_streams: int = 1024,
    limiter: ConnectionLimiter | None = None,
    unix: UnixAccess | None = None,
    max_hold: float = MAX_HOLD,
    max_incomplete: int | None = None,
) -> AsyncIterator[list[Address]]:
    """Serve a manager, which the caller enters and leaves; yield the addresses with their ports.

    Raises CannotListen.
    """
    limiter, unix = limiter or ConnectionLimiter(), unix or UnixAccess()
    service = Service(manager, model, access or Access(), max_streams, scheduler=FlushScheduler(max_hold))
    service.budget = ReceiveBudget(time.monotonic, max_incomplete)
    bound = []
    async with AsyncExitStack() as stack:
        for address in addresses:
            listeners = _bind(address, unix)
            acceptor = Acceptor(partial(Connection, service), REFUSAL, limiter, tls if address.scheme == "tls" else None)
            for listener in listeners:
                await stack.enter_async_context(listen(acceptor, listener))
            if address.scheme == "unix":
                stack.callback(Path(address.path).unlink, missing_ok=True)
                bound.append(address)
            else:
                bound.append(Address(address.scheme, address.host, listeners[0].getsockname()[1]))
        try:
            yield bound
        finally:
            with anyio.CancelScope(shield=True):
                await service.close()


def _bind(address: Address, unix: UnixAccess) -> list[socket.socket]:
    try:
        return [bind_unix(Path(address.path), unix)] if address.scheme == "unix" else bind_all([address.host], address.port)
    except OSError as error:
        raise CannotListen(str(address), error) from None
