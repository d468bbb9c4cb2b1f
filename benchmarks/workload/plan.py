"""The plan of a run: loads, one point after another. Pure, and small enough for a pipe."""

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
    """A closed loop with a `concurrency`, or an open loop with a pattern.

    Attributes:
        rate: Requests per second of constant, poisson and gamma.
        shape: Shape of gamma; below 1 is bursty.
        ends: First and last rate of a ramp.
        stairs: (rate, seconds) of each step.
        trace: Requests to send again, with their times and lengths.
        staggered: Whether each client of a closed loop begins with an answer that is cut to a
            different part of its length and does not count. The clients are then out of step, as
            after a long time. Clients that begin together with answers of one length end together
            and ask again together, so each of their prompts waits for all the others.
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
        """Return an open loop's times before `seconds`; steps and traces have their own end."""
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
        """Return the mean requests per second; None for a closed loop, which the answers drive."""
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
class PointPlan:
    """One point's work, or one process's share of it.

    Attributes:
        label: Separates the prompts of a point, or of its warm-up, from all others.
        requests: Number of conversations in a closed loop.
        seconds: Duration of an open loop.
        salt: Targets that share an engine get equal lengths, and by their `salt` different tokens.
        share: (which, of how many): the share is every N-th request.
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
        """Make the share's times (none in a closed loop) and items, before the run to save time."""
        which, of = self.part
        times = self._times()
        count = self.requests if self.load.pattern == "closed" else len(times)
        if which >= of:
            return [], []
        return times[which::of], [*self._leads()[which::of], *itertools.islice(self._items(), which, count, of)]

    def first(self, count: int) -> tuple[list[float], list[Item]]:
        """Return the first times and items of the whole point."""
        count = min(count, self.requests if self.load.pattern == "closed" else len(self._times()))
        return self._times()[:count], list(itertools.islice(self._items(), count))

    def _times(self) -> list[float]:
        return [] if self.load.pattern == "closed" else self.load.times(self.seconds, self.workload.seed)

    def _leads(self) -> list[Item]:
        """Return a shortened first request for each client of a staggered closed loop."""
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
        """Number of requests in total, if every conversation has one turn."""
        return self.requests if self.load.pattern == "closed" else len(self._times())

    @property
    def part(self) -> tuple[int, int]:
        """This process's share as (index, count); an index of at least `count` gets no clients.

        The count is reduced to the number of clients if there are fewer clients than processes.
        """
        which, of = self.share
        return which, min(of, self.load.concurrency or of)

    @property
    def clients(self) -> int:
        """Number of this share's clients in a closed loop."""
        which, of = self.part
        return len(range(which, self.load.concurrency or 0, of))
