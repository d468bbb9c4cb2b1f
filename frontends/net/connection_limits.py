"""Limits on the number of connections, in total and per address."""

import ipaddress
import resource
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import attrs

# File descriptors kept free for pipes, logs and other files, so that accepting never lacks one.
# asyncio would log that failure once per waiting connection, 6 MB a second.
RESERVED = 64
# Descriptors that a process requests from the system; the operator may allow more.
MAX_DESCRIPTORS = 65_536
# One address may have 1/PEER_SHARE of all connections, so that three machines cannot take all of
# them. Connections from this machine are exempt, because they often come from a proxy.
PEER_SHARE = 4


def raise_descriptor_limit() -> None:
    """Raise the limit of open files as far as the system allows.

    A shell's default of 1024 is meant for programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def spare_descriptors() -> int:
    """Return the number of connections that the limit of open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else max(1, soft - RESERVED)


@attrs.define
class ConnectionLimiter:
    """Counts the open connections and enforces the limits.

    Attributes:
        most: maximum number of connections; None uses the limit of open files.
        most_of_peer: maximum per address, loopback exempt; None is a quarter of `most`.
        strangers: whether other users may connect to a unix socket, as its file's mode allows.
        is_proxy: whether an address is a trusted proxy's, whose clients are counted instead.
        inside: the open connections.
        rejected: the rejected connections, and rejected requests behind proxies.
    """

    most: int | None = None
    most_of_peer: int | None = None
    strangers: bool = False
    is_proxy: Callable[[str], bool] = lambda _: False
    inside: int = attrs.field(default=0, init=False)
    rejected: int = attrs.field(default=0, init=False)
    _most: int = attrs.field(init=False)
    _most_of_peer: int = attrs.field(init=False)
    _peers: Counter[str] = attrs.field(factory=Counter, init=False)

    def __attrs_post_init__(self) -> None:
        spare = spare_descriptors()
        self._most = min(self.most or spare, spare)
        self._most_of_peer = self.most_of_peer or max(1, self._most // PEER_SHARE)

    def enter(self, peer: str) -> bool:
        """Return whether a connection is within the limits. If it is, call `leave` at its end."""
        if self.inside >= self._most or not self._may(peer):
            self.rejected += 1
            return False
        self.inside += 1
        self._peers[peer] += 1
        return True

    def enter_behind_proxy(self, client: str) -> bool:
        """Return whether a request of a proxy's client is within the limit per address.

        If it is, call `leave_behind_proxy` at its end.
        """
        if not self._may(client):
            self.rejected += 1
            return False
        self._peers[client] += 1
        return True

    def leave_behind_proxy(self, client: str) -> None:
        self._forget(client)

    def _may(self, peer: str) -> bool:
        return self._peers[peer] < self._most_of_peer or _is_here(peer) or self.is_proxy(peer)

    def leave(self, peer: str) -> None:
        self.inside -= 1
        self._forget(peer)

    def _forget(self, peer: str) -> None:
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]


def _is_here(peer: str) -> bool:
    """Return whether an address is this machine's. A unix socket's address is empty."""
    return not peer or ipaddress.ip_address(peer.partition("%")[0]).is_loopback
