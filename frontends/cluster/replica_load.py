"""The reported load of replicas, and their order for a new request. Without I/O."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import attrs

from llmserve import ManagerStatistics, State

Name = TypeVar("Name")


@attrs.frozen(kw_only=True)
class Load:
    """The load of one replica.

    Attributes:
        number: the number of this report.
        limit: the maximum number of running requests; None without a fixed limit.
        wait: the predicted wait of a new request in seconds; None if unknown.
        interval: seconds between two requests that leave the queue; None if unknown.
    """

    number: int
    ready: bool
    running: int
    waiting: int
    limit: int | None
    wait: float | None
    interval: float | None

    @classmethod
    def of(cls, statistics: ManagerStatistics, number: int) -> "Load":
        admission = statistics.admission
        rate = admission.drain_rate if admission else None
        return cls(
            number=number,
            ready=statistics.state is State.READY,
            running=statistics.running,
            waiting=statistics.waiting,
            limit=admission.limit if admission else None,
            wait=admission.predicted_wait if admission else None,
            interval=1 / rate if rate else None,
        )

    def expected_wait(self, sent: int) -> float:
        """Return the wait of a new request in seconds, after `sent` requests since this report."""
        full = self.waiting > 0 or (self.limit is not None and self.running + sent >= self.limit)
        return (self.wait or 0.0) + sent * (self.interval or 0.0) if full else 0.0

    def rank(self, sent: int) -> tuple[bool, float, int]:
        """Return a sort key; the best replica is ready, has a short wait and few requests."""
        return not self.ready, self.expected_wait(sent), self.running + self.waiting + sent


# The load of a replica that has not reported yet: it has just started and is empty.
NEW = Load(number=0, ready=True, running=0, waiting=0, limit=None, wait=None, interval=None)


def in_order(names: Sequence[Name], loads: Mapping[Name, Load], sent: Mapping[Name, int]) -> list[Name]:
    """Sort replicas by how soon they would serve a new request. The sort is stable."""
    return sorted(names, key=lambda name: loads.get(name, NEW).rank(sent.get(name, 0)))


def place_of(key: str, name: str) -> bytes:
    """Return a replica's rank for a key; the replica with the lowest rank is the key's replica.

    When a replica joins or leaves, the fewest possible keys change their replica (rendezvous
    hashing, Thaler and Ravishankar 1998).
    """
    return hashlib.sha256(f"{key} {name}".encode()).digest()
