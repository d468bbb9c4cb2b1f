"""Sockets that listen, for any wire."""

import argparse
import errno
import grp
import os
import socket
import struct
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

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

OWNER_ALONE, OWNER_AND_GROUP = 0o600, 0o660
# Machines without IPv6 still have ::1 for localhost in their hosts file.
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
# With port 0 and several addresses. That a free port of one is taken on another is rare.
ATTEMPTS = 10


class CannotListen(Exception):
    """An address that is taken, or that does not exist here."""

    def __init__(self, address: str, error: OSError) -> None:
        super().__init__(f"{address}: {error.strerror or error}")


def add_unix_options(parser: argparse.ArgumentParser) -> None:
    words = "mode of a unix socket's file, in octal (default: 600, or 660 with --unix-group)"
    parser.add_argument("--unix-mode", type=_mode, metavar="MODE", help=words)
    parser.add_argument("--unix-group", type=_group, metavar="GROUP", help="group of a unix socket's file, by name or number")


@attrs.frozen
class UnixAccess:
    """Who may connect to a unix socket: `mode` and `group` (its id, None for the process's own) of its file."""

    mode: int = OWNER_ALONE
    group: int | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> "UnixAccess":
        """What `add_unix_options` has parsed."""
        mode = OWNER_ALONE if options.unix_group is None else OWNER_AND_GROUP
        return cls(mode if options.unix_mode is None else options.unix_mode, options.unix_group)

    @property
    def owner_alone(self) -> bool:
        return self.mode & 0o077 == 0


def bind_unix(path: Path, access: UnixAccess = UnixAccess()) -> socket.socket:
    """A listening unix socket, by default for its owner alone. One that a killed server left behind is replaced. Raises OSError."""
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
        if access.group is not None:
            os.chown(path, -1, access.group)
        # Last, so that no other group has the mode for a moment.
        if access.mode != OWNER_ALONE:
            os.chmod(path, access.mode)
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


def without_brackets(host: str) -> str:
    """An IPv6 address as it is bound, where it was given as in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def authority(host: str, port: int) -> str:
    """As in a URL: an IPv6 address has brackets."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def bind_all(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """A listening TCP socket for each address of the hosts, all on one port; 0 takes one that is free on all of them.

    `::` is every address of both families, in two sockets: a single one would show IPv4 clients under IPv6 addresses, which no limit and
    no log would know again. An address of a family that this machine does not have is left out where another one is there.

    Raises CannotListen, naming the host.
    """
    attempts = ATTEMPTS if port == 0 else 1
    while True:
        attempts -= 1
        with ExitStack() as stack:
            listeners: list[socket.socket] = []
            try:
                for host in hosts:
                    at = listeners[0].getsockname()[1] if listeners else port
                    bound = {listener.getsockname()[0] for listener in listeners}
                    listeners.extend(stack.enter_context(listener) for listener in _bind_host(host, at, bound))
            except UnicodeError:
                raise CannotListen(host[:64], OSError(errno.EINVAL, "this is not a host name")) from None
            except OSError as error:
                # The free port of one address may be taken on another.
                if attempts and error.errno == errno.EADDRINUSE:
                    continue
                raise CannotListen(authority(host, port), error) from None
            stack.pop_all()
            return listeners


def _bind_host(host: str, port: int, bound: Collection[str]) -> list[socket.socket]:
    """Leaves out the addresses that are `bound` already, as 127.0.0.1 is for localhost beside it. Raises OSError."""
    found: list[socket.socket] = []
    absent: OSError | None = None
    for address in _addresses(host):
        if address in bound:
            continue
        try:
            found.append(bind(address, found[0].getsockname()[1] if found else port))
        except OSError as error:
            if error.errno not in ABSENT:
                for listener in found:
                    listener.close()
                raise
            absent = error
    if absent is not None and not found:
        raise absent
    return found


def _addresses(host: str) -> list[str]:
    if host == "::":
        return ["::", "0.0.0.0"]  # noqa: S104 - the operator has asked for every address
    # In the order that the system prefers, each once.
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    # Without its owner's bits the server could not connect to it to see whether another one answers.
    if not 0o600 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mode from 600 to 777, in octal")
    return mode


def _group(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"this machine has no group {text!r}") from None


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
