"""Ends connections whose clients have stopped reading, and only those: the deadline runs from the last bytes that the client took.

The kernel says what a client took. A transport cannot: with TLS its buffer is empty while the one below it holds a whole response, and on
a slow connection the kernel's buffer of some megabytes empties without a word to the transport for longer than the deadline.
"""

import asyncio
import fcntl
import socket
import struct
import termios

from frontends.net import deadlines

# How often a connection is looked at within its deadline. A look takes 3 us.
LOOKS = 10
# Of Linux's struct tcp_info: tcpi_bytes_acked, 64 bits.
_ACKED_AT, _TCP_INFO = 120, 128
_INT = struct.calcsize("i")


class WriteWatch:
    """Watches one connection until `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._socket = transport.get_extra_info("socket")
        self._seconds = deadlines.spread(deadlines.WRITE_SECONDS)
        self._taken: int | None = None
        self._since = 0.0
        self._look()

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        try:
            waiting = self._waiting()
            taken = self._bytes_taken(waiting)
        except (OSError, ValueError):
            # The socket is closed, and the connection's end about to be told.
            return
        # A TLS connection that was closed also waits for the client's last word.
        idle = not waiting and not self._transport.is_closing()
        if idle or taken != self._taken:
            self._taken, self._since = taken, now
        left = self._since + self._seconds - now
        if left <= 0:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(min(left, self._seconds / LOOKS), self._look)

    def _waiting(self) -> int:
        """Bytes that the client has not taken; with TLS those in the kernel alone, which is never empty while more wait."""
        queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(_INT))
        return int(struct.unpack("i", queued)[0]) + self._transport.get_write_buffer_size()

    def _bytes_taken(self, waiting: int) -> int:
        """A number that changes when the client takes bytes."""
        if self._socket.family == socket.AF_UNIX:
            return -waiting
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
        return int(struct.unpack_from("=Q", info, _ACKED_AT)[0])
