"""Sockets that listen, for any wire."""

import os
import socket
import struct
from pathlib import Path

# Ten thousand connections that come at once take 1.4 s to be accepted; with 128, which is asyncio's and aiohttp's default, 54 s.
BACKLOG = 4096
# What the kernel holds for one client that does not read; by itself it would go up to 4 MiB (Linux's tcp_wmem), out of sight of every bound
# of ours. An answer's tokens need a hundredth of what so much carries a second at a round trip of 100 ms.
SEND_BUFFER = 128 * 1024
# A client whose machine or network is gone says nothing. It is asked after 15 s of silence and again every 5 s, and given up 30 s after
# it should have acknowledged something; by themselves a kernel asks after two hours, and gives up what it has sent after fifteen minutes.
VANISHED = {
    socket.TCP_KEEPIDLE: 15,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,
}


class CannotListen(Exception):
    """An address that is taken, or that does not exist here."""

    def __init__(self, address: str, error: OSError) -> None:
        super().__init__(f"{address}: {error.strerror or error}")


def bind_unix(path: Path) -> socket.socket:
    """A listening unix socket, for its owner alone. One that a killed server left behind is replaced. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A link is not followed: somebody else may have laid it.
        if path.is_socket() and not path.is_symlink() and not _answers(path):
            path.unlink()
        # From the moment that it exists.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def is_stranger(connection: socket.socket) -> bool:
    """Whether the other end of a unix socket belongs to another user, who is not root: the file's mode says the same, until somebody
    changes it."""
    if connection.family != socket.AF_UNIX:
        return False
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user not in (0, os.geteuid())


def bind(host: str, port: int, *, share: bool = False) -> socket.socket:
    """A listening TCP socket, which other processes may `share` the port of. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=share)
    # Its connections inherit these.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in VANISHED.items():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener
