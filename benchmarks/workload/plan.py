"""What a run is going to do: loads to hold, one point after another. Pure, and small enough to be sent to another process."""

import itertools
import math
from collections.abc import Iterator
from typing import Literal

import attrs

from benchmarks.workload import arrivals
from benchmarks.workload.requests import Item, Workload
from benchmarks.workload.traces import Arrival

Pattern = Literal["closed", "constant", "poisson", "gamma", "ramp", "steps", "trace"]


@attrs.frozen(kw_only=True)
class Load:
    """A closed loop at a `concurrency`, or an open one by a pattern.

    Attributes:
        rate: of constant, poisson and gamma, requests a second.
        shape: of gamma; below 1 is bursty.
        ends: of a ramp, its first and last rate.
        stairs: of steps, (rate, seconds) each.
        trace: the requests to send again, at their times and of their lengths.
        staggered: a closed loop's clients each begin with an answer that is cut to a different part of its length, which does not
            count, so that they are out of step as clients are that have gone on for long. Clients that begin together with answers of
            one length end together, and ask together again: every prompt of theirs then waits for all others'.
    """

    pattern: Pattern = "closed"
    concurrency: int | None = None
    rate: float | None = None
    shape: float = 1.0
    ends: tuple[float, float] = (0.0, 0.0)
    stairs: tuple[tuple[float, float], ...] = ()
    trace: tuple[Arrival, ...] = ()
    staggered: bool = False

    def times(self, seconds: float, seed: int) -> list[float]:
        """When an open loop sends, from 0, all of them before `seconds` (of steps and traces: before their own end)."""
        match self.pattern:
            case "steps":
                return list(arrivals.steps(self.stairs, seed))
            case "trace":
                return [arrival.time for arrival in self.trace]
            case "ramp":
                endless: Iterator[float] = arrivals.ramp(*self.ends, seconds)
            case "constant":
                endless = arrivals.constant(self.rate or 1.0)
            case _:
                endless = arrivals.gamma(self.rate or 1.0, self.shape, seed)
        return list(itertools.takewhile(lambda time: time < seconds, endless))

    def mean_rate(self, seconds: float) -> float | None:
        """Requests a second over the whole of it; None for a closed loop, which sends as it is answered."""
        match self.pattern:
            case "closed":
                return None
            case "ramp":
                return sum(self.ends) / 2
            case "steps":
                return sum(rate * length for rate, length in self.stairs) / sum(length for _, length in self.stairs)
            case "trace":
                return len(self.trace) / max(self.trace[-1].time, 1e-9)
        return self.rate


@attrs.frozen(kw_only=True)
class PlannedRequest:
    """One point's work, or one process's `share` (which of how many) of it: every N-th request, wherever it is sent from.

    `requests` are conversations in a closed loop; an open one lasts `seconds`. `label` keeps the prompts of one point, or of its
    warm-up, apart from all others; targets that share an engine get the same lengths, and by `salt` other tokens.
    """

    point: int
    label: str
    load: Load
    workload: Workload
    requests: int
    seconds: float = 0.0
    salt: str = ""
    share: tuple[int, int] = (0, 1)

    def schedule(self) -> tuple[list[float], list[Item]]:
        """Times (none in a closed loop) and items of this share, all made beforehand: making them costs time."""
        which, of = self.part
        times = self._times()
        count = self.requests if self.load.pattern == "closed" else len(times)
        if which >= of:
            return [], []
        return times[which::of], [*self._leads()[which::of], *itertools.islice(self._items(), which, count, of)]

    def first(self, count: int) -> tuple[list[float], list[Item]]:
        """The first times and items of the whole."""
        count = min(count, self.requests if self.load.pattern == "closed" else len(self._times()))
        return self._times()[:count], list(itertools.islice(self._items(), count))

    def _times(self) -> list[float]:
        return [] if self.load.pattern == "closed" else self.load.times(self.seconds, self.workload.seed)

    def _leads(self) -> list[Item]:
        """One for each client of a staggered closed loop, ending one after another."""
        clients = self.load.concurrency or 0
        if not self.load.staggered:
            return []
        items = itertools.islice(self.workload.items(f"lead {self.label}", self.salt), clients)
        return [
            attrs.evolve(item, max_tokens=math.ceil(item.max_tokens * (number + 1) / clients), cancel_after=None, follow_ups=(), lead=True)
            for number, item in enumerate(items)
        ]

    def _items(self) -> Iterator[Item]:
        if self.load.pattern == "trace":
            return self.workload.replay(self.load.trace, self.label, self.salt)
        return self.workload.items(self.label, self.salt)

    @property
    def planned(self) -> int:
        """Requests in all, where every conversation has one turn."""
        return self.requests if self.load.pattern == "closed" else len(self._times())

    @property
    def part(self) -> tuple[int, int]:
        """The share as it counts: of a closed loop with fewer clients than there are processes, the rest (which >= of) get nothing."""
        which, of = self.share
        return which, min(of, self.load.concurrency or of)

    @property
    def clients(self) -> int:
        """This share of a closed loop's concurrency."""
        which, of = self.part
        return len(range(which, self.load.concurrency or 0, of))
