"""A raw-socket client with the manager's interface: the same methods, requests and errors.

    async with SocketClient("tcp://127.0.0.1:9000") as client:
        completion = await client.generate("The capital of France is", max_tokens=16)

Client and server require asyncio.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import anyio

from frontends.rawsocket import frames
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.client_connection import Wire
from frontends.rawsocket.client_stream import RemoteStream
from frontends.rawsocket.frames import Hello
from llmserve import CancellationToken, GenerationRequest, RequestCancelled
from llmserve.generation import Generation
from llmserve.lifecycle.open_request import interrupter

CONNECT_SECONDS = 10.0


class SocketClient(Generation):
    """One connection for any number of streams.

    `stream()` and `generate()` are those of `EngineManager`, with three differences. The fields of
    `client_connection.NOT_CARRIED` are refused, the server chooses `request_id`, and nothing calls
    `on_arrival`. An error's `partial` is the output that has arrived.

    Args:
        address: tcp://host:port, tls://host:port or unix:///path.
        key: the API key, if the server requires one.
        tls: how to verify a tls:// server; None uses the system's CAs.
    """

    def __init__(self, address: str, *, key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.address = parse_address(address)
        self._key = key
        self._tls = tls
        self._wire: Wire | None = None

    def __repr__(self) -> str:
        return f"<SocketClient {self.address} {'connected' if self._wire else 'not connected'}>"

    async def __aenter__(self) -> Self:
        """Connect to the server.

        Raises OSError where no server listens, FrameError where the server refuses the connection,
        and TimeoutError.
        """
        loop, address = asyncio.get_running_loop(), self.address
        hello = Hello(frames.VERSION, self._key)
        with anyio.fail_after(CONNECT_SECONDS):
            if address.scheme == "unix":
                _, wire = await loop.create_unix_connection(lambda: Wire(str(address), hello), address.path)
            else:
                context = (self._tls or ssl.create_default_context()) if address.scheme == "tls" else None
                _, wire = await loop.create_connection(lambda: Wire(str(address), hello), address.host, address.port, ssl=context)
            try:
                await wire.welcomed
            except BaseException:
                wire.transport.abort()
                raise
        self._wire = wire
        return self

    async def __aexit__(self, *_: object) -> None:
        wire, self._wire = self.wire, None
        wire.transport.close()
        with anyio.move_on_after(1, shield=True):
            await wire.lost.wait()

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            raise RuntimeError("the client is not connected; use it in `async with`")
        return self._wire

    @property
    def model(self) -> str:
        """The name under which the server serves its model."""
        return self.wire.welcomed.result().model

    @asynccontextmanager
    async def _stream(self, request: GenerationRequest, token: CancellationToken | None) -> AsyncIterator[RemoteStream]:
        """Open a stream, and wait until the server has admitted it.

        Leaving early frees its resources on the server. Raises EngineDead when the connection is
        lost.
        """
        await self.wire.writable.wait()
        stream = self.wire.open(request, token)
        unlink = token.add_callback(interrupter(stream)) if token is not None else (lambda: None)
        try:
            while not stream.started and not stream.ended:
                await stream.change.wait()
            stream.raise_if_failed()
            yield stream
        finally:
            unlink()
            # Does nothing if the stream has ended; else it cancels the stream on the server.
            stream.fail(RequestCancelled("the stream was closed"))

    async def ping(self) -> float:
        """Return the round-trip time in seconds."""
        return await self.wire.ping()
