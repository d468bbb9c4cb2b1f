"""The socket pair between the supervisor and a worker, with the raw socket's framing."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from frontends.rawsocket.frames import MAX_ANSWER, FrameReader, encode


class Channel(asyncio.Protocol):
    """One end of the socket pair.

    After `listen()`, it calls `receive` for each message, including earlier ones. It calls `lost`
    when the other end has closed.
    """

    def __init__(self, kind: Any, receive: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._reader: FrameReader[Any] = FrameReader(kind, MAX_ANSWER)
        self._receive = receive
        self._lost = lost
        self._listens = False

    @classmethod
    async def open(cls, connection: socket.socket, kind: Any, receive: Callable[[Any], None], lost: Callable[[], None]) -> "Channel":
        _, channel = await asyncio.get_running_loop().create_connection(lambda: cls(kind, receive, lost), sock=connection)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def listen(self) -> None:
        self._listens = True
        self._drain()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        # The owner of the channel prepares for messages between `open()` and `listen()`. Pausing
        # does not work: uvloop continues to read after `pause_reading()` in `connection_made`.
        if self._listens:
            self._drain()

    def _drain(self) -> None:
        while (message := self._reader.next()) is not None:
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()

    def send(self, message: Any) -> None:
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        self._transport.close()
