"""Who may connect: as many as there are file descriptors for, and no other machine takes all of them."""

import argparse
import ipaddress
import resource
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import attrs

from frontends.net.listeners import UnixAccess

# For the engine's pipes, the log and whatever else a process opens, so that accepting never fails for want of a descriptor: asyncio would
# log that once for each connection that waits, 6 MB a second.
RESERVED = 64
# Of what a process asks the system for; more is the operator's to allow.
MAX_DESCRIPTORS = 65_536
# So that four machines are needed to leave no place for a fifth. What comes from this machine is a proxy as often as not.
PEER_SHARE = 4


def raise_descriptor_limit() -> None:
    """As far as the system lets a process do it by itself; a shell's 1024 is for programs that wait with select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def spare_descriptors() -> int:
    """Connections that there is room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else max(1, soft - RESERVED)


@attrs.define
class ConnectionLimiter:
    """Counts who is inside.

    Attributes:
        most: connections at once; None is what the process's file descriptors leave room for.
        most_of_peer: of one address, unless that is this machine's; None is a quarter of `most`.
        strangers: whether other users of this machine may connect to a unix socket, as its file's mode then says.
        turned_away: how many there were no places for.
    """

    most: int | None = None
    most_of_peer: int | None = None
    strangers: bool = False
    # Whether an address is a proxy's, whose clients are counted instead.
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

    @classmethod
    def of(cls, options: argparse.Namespace, is_proxy: Callable[[str], bool] = lambda _: False) -> "ConnectionLimiter":
        """As the command line says."""
        strangers = not UnixAccess.of(options).owner_alone
        return cls(options.max_connections, options.max_peer_connections, strangers, is_proxy)

    def enter(self, peer: str) -> bool:
        """Whether there is a place. What has entered leaves."""
        if self.inside >= self._most or not self._may(peer):
            self.rejected += 1
            return False
        self.inside += 1
        self._peers[peer] += 1
        return True

    def enter_behind_proxy(self, client: str) -> bool:
        """Whether one more request of a proxy's client is within the bound for one address. What has entered leaves."""
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
    """A unix socket has no address at all."""
    return not peer or ipaddress.ip_address(peer.partition("%")[0]).is_loopback
