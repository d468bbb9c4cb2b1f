"""Listening sockets, for all wire protocols."""

import argparse
import errno
import grp
import os
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

from frontends.options.definitions import option

# Accepting ten thousand simultaneous connections takes 1.4 s. With 128, the default of asyncio and
# aiohttp, it takes 54 s.
BACKLOG = 4096
# Bytes that the kernel holds for a client that does not read. Its default goes up to 4 MiB (Linux's
# tcp_wmem), outside of all our limits. At a round trip of 100 ms this buffer carries a hundred
# times what a response's tokens need.
SEND_BUFFER = 128 * 1024
# A client whose machine or network is gone sends no end. The kernel probes it after 15 s of silence
# and then every 5 s, and closes the connection 30 s after a missing acknowledgement. The kernel's
# defaults are two hours and fifteen minutes.
VANISHED = {
    socket.TCP_KEEPIDLE: 15,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,
}

OWNER_ALONE, OWNER_AND_GROUP = 0o600, 0o660
# Machines without IPv6 may still list ::1 as localhost in their hosts file.
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
# Attempts with port 0 and several addresses. A free port of one is rarely taken on another.
ATTEMPTS = 10


class CannotListen(Exception):
    """An address that is in use or does not exist on this machine."""

    def __init__(self, address: str, error: OSError) -> None:
        super().__init__(f"{address}: {error.strerror or error}")
        self.in_use = error.errno == errno.EADDRINUSE


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    # Without the owner's bits a server could not connect to check whether another server answers.
    if not 0o600 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode from 600 to 777")
    return mode


def _group(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"this machine has no group {text!r}") from None


@attrs.frozen
class UnixAccess:
    """The permissions of a unix socket's file.

    Attributes:
        given_mode: the file's mode; None for the default.
        group: the id of the file's group; None for the process's group.
    """

    given_mode: int | None = option(
        None,
        "file mode of the unix socket, in octal (default: 600, or 660 with --unix-group)",
        metavar="MODE",
        parse=_mode,
        write="{:o}".format,
        name="unix_mode",
    )
    group: int | None = option(None, "file group of the unix socket, by name or number", metavar="GROUP", parse=_group, name="unix_group")

    @property
    def mode(self) -> int:
        if self.given_mode is not None:
            return self.given_mode
        return OWNER_ALONE if self.group is None else OWNER_AND_GROUP

    @property
    def owner_alone(self) -> bool:
        return self.mode & 0o077 == 0


def bind_unix(path: Path, access: UnixAccess = UnixAccess()) -> socket.socket:
    """Return a listening unix socket, by default for its owner only. Raises OSError.

    It replaces a socket that a killed server has left behind.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A symbolic link is not followed: another user may have created it.
        if path.is_socket() and not path.is_symlink() and not _answers(path):
            path.unlink()
        # The file has the right mode from the moment that it exists.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if access.group is not None:
            os.chown(path, -1, access.group)
        # After chown, so that the previous group never has this mode.
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
    """Return whether the peer of a unix socket is a user other than this process's user and root.

    The file's mode excludes them too, until another program changes the mode.
    """
    if connection.family != socket.AF_UNIX:
        return False
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user not in (0, os.geteuid())


def without_brackets(host: str) -> str:
    """Return a host without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def authority(host: str, port: int) -> str:
    """Return host and port as in a URL, where an IPv6 address has brackets."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def bind_all(hosts: Sequence[str], port: int, *, share: bool = False) -> list[socket.socket]:
    """Return listening TCP sockets for all addresses of the hosts, on one port.

    Port 0 picks a port that is free on all addresses. `::` means every IPv4 and IPv6 address, with
    two sockets: a single one would show IPv4 clients under IPv6 addresses, which limits and logs
    would not recognize. An address of a family that this machine lacks is skipped if the host has
    another address. With `share`, other processes may use the port.

    Raises CannotListen, which names the host.
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
                    listeners.extend(stack.enter_context(listener) for listener in _bind_host(host, at, bound, share=share))
            except UnicodeError:
                raise CannotListen(host[:64], OSError(errno.EINVAL, "not a valid host name")) from None
            except OSError as error:
                # The free port of one address may be taken on another.
                if attempts and error.errno == errno.EADDRINUSE:
                    continue
                raise CannotListen(authority(host, port), error) from None
            stack.pop_all()
            return listeners


def _bind_host(host: str, port: int, bound: Collection[str], *, share: bool) -> list[socket.socket]:
    """Bind a host's addresses, except those already `bound`. Raises OSError.

    127.0.0.1 is already bound if the hosts are 127.0.0.1 and localhost.
    """
    found: list[socket.socket] = []
    absent: OSError | None = None
    for address in _addresses(host):
        if address in bound:
            continue
        try:
            found.append(bind(address, found[0].getsockname()[1] if found else port, share=share))
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
    # In the system's preferred order, without duplicates.
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))


def bind(host: str, port: int, *, share: bool = False) -> socket.socket:
    """Return a listening TCP socket.

    With `share`, other processes may use its port. Raises OSError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=share)
    # Accepted connections inherit these options.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    probe(listener, VANISHED)
    return listener


def probe(connection: socket.socket, times: Mapping[int, int]) -> None:
    """Let the kernel probe a silent TCP connection; `times` are the options of these probes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in times.items():
        connection.setsockopt(socket.IPPROTO_TCP, name, value)
