"""Clients that read or send slowly, on a clock that the test moves, so that no test waits."""

import asyncio
import heapq
import itertools
import socket
import ssl
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"


class ManualClock:
    """The part of an event loop that `WriteWatch` uses."""

    def __init__(self):
        self.now = 0.0
        self._due = []
        self._numbers = itertools.count()

    def time(self):
        return self.now

    def call_later(self, seconds, callback, *arguments):
        timer = Timer(callback, arguments)
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), timer))
        return timer

    @property
    def pending(self):
        """Whether a callback is still to come."""
        return any(not timer.cancelled for _, _, timer in self._due)

    def advance(self, seconds):
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._due)
            if not timer.cancelled:
                timer.callback(*timer.arguments)
        self.now = until


class Timer:
    def __init__(self, callback, arguments):
        self.callback, self.arguments, self.cancelled = callback, arguments, False

    def cancel(self):
        self.cancelled = True


async def connect_narrow(address, *, tls=False):
    """Connect with small buffers on the client's side, so that unread bytes stay on the server."""
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, address)
    secure: dict[str, Any] = (
        {"ssl": ssl.create_default_context(cafile=str(DATA / "localhost.pem")), "server_hostname": "localhost"} if tls else {}
    )
    return await asyncio.open_connection(sock=connection, limit=16_384, **secure)
