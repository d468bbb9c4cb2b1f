"""What a replica tells of how busy it is, and which of several would serve a newcomer first. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs

from llmserve import ManagerStatistics, State

Name = TypeVar("Name")


@attrs.frozen(kw_only=True)
class Load:
    """One replica at one moment.

    `number` is another one each time that it is told. `wait` is what a newcomer is predicted to wait, in seconds; `interval` is the
    time from one that leaves the line to the next; both None where that is unknown. `limit` is how many may run, None without a number.
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

    def plain(self) -> dict[str, Any]:
        return attrs.asdict(self)

    def expected_wait(self, sent: int) -> float:
        """Seconds that a newcomer would wait, when `sent` others have been sent there since this was told."""
        full = self.waiting > 0 or (self.limit is not None and self.running + sent >= self.limit)
        return (self.wait or 0.0) + sent * (self.interval or 0.0) if full else 0.0

    def rank(self, sent: int) -> tuple[bool, float, int]:
        """Smaller is better: it takes requests, it serves soon, it has little to do."""
        return not self.ready, self.expected_wait(sent), self.running + self.waiting + sent


# Of one that has told nothing yet: it has just come, and is empty.
NEW = Load(number=0, ready=True, running=0, waiting=0, limit=None, wait=None, interval=None)


def in_order(names: Sequence[Name], loads: Mapping[Name, Load], sent: Mapping[Name, int]) -> list[Name]:
    """From the one that would serve a newcomer first to the last; equals stay as they were."""
    return sorted(names, key=lambda name: loads.get(name, NEW).rank(sent.get(name, 0)))


def place_of(key: str, name: str) -> bytes:
    """Where a replica stands for a key: the first of those that are there is another one for as few keys as can be when one goes or comes
    (rendezvous hashing, Thaler and Ravishankar 1998)."""
    return hashlib.sha256(f"{key} {name}".encode()).digest()
