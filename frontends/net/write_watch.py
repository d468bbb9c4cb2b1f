"""Closes connections whose clients have stopped reading.

The time limit runs from the last bytes that the client took. Only the kernel knows what a client
took. With TLS a transport's buffer is empty while the buffer below it holds a whole response. On a
slow connection, the kernel's buffer of some megabytes may take longer than the limit to empty, and
the transport sees no progress.
"""

import asyncio
import fcntl
import socket
import struct
import termios

from frontends.net import deadlines

# Number of checks of a connection within its time limit. A check takes 3 us.
LOOKS = 10
# The offset of tcpi_bytes_acked (64 bits) in Linux's struct tcp_info, and the bytes to read.
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
            # The socket is closed, and `connection_lost` follows.
            return
        # A closing TLS connection also waits for the client's close message.
        idle = not waiting and not self._transport.is_closing()
        if idle or taken != self._taken:
            self._taken, self._since = taken, now
        left = self._since + self._seconds - now
        if left <= 0:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(min(left, self._seconds / LOOKS), self._look)

    def _waiting(self) -> int:
        """Return the number of bytes that the client has not taken.

        With TLS these are only the kernel's, which are never 0 while more bytes wait.
        """
        queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(_INT))
        return int(struct.unpack("i", queued)[0]) + self._transport.get_write_buffer_size()

    def _bytes_taken(self, waiting: int) -> int:
        """Return a number that changes when the client takes bytes."""
        if self._socket.family == socket.AF_UNIX:
            return -waiting
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
        return int(struct.unpack_from("=Q", info, _ACKED_AT)[0])
