"""Notices during an open loop that its rate is above capacity, from the generator's progress."""

import math
import time
from collections.abc import Callable

import anyio
import attrs
import numpy as np

from benchmarks.analysis.backlog import FILLING_SHARE, PARTS, STEADY_PATTERNS, trend
from benchmarks.generator.run import Measured, Progress
from benchmarks.sweep.systems import SystemUnderTest
from benchmarks.workload.plan import PointPlan

# The first judgement, and the time between two.
MIN_SECONDS, MIN_REQUESTS, MIN_ENDED = 8.0, 64, 16
INTERVAL_SECONDS = 0.5
# Many judgements of one run need a larger margin than the one at its end.
CERTAIN = 5.0


@attrs.define
class EarlyStop:
    """The requests in flight so far, by seconds since the point's start, at a rate that was asked for."""

    rate: float = math.inf
    _times: list[float] = attrs.field(factory=list)
    _in_flight: list[int] = attrs.field(factory=list)
    _sent: list[int] = attrs.field(factory=list)
    _judged: float = 0.0

    def over_saturated(self, seconds: float, in_flight: int, done: int) -> bool:
        """Add the progress at a time, and return whether the requests in flight grow without end."""
        self._times.append(seconds)
        self._in_flight.append(in_flight)
        self._sent.append(in_flight + done)
        if seconds < max(MIN_SECONDS, self._judged + INTERVAL_SECONDS) or self._sent[-1] < MIN_REQUESTS or done < MIN_ENDED:
            return False
        self._judged = seconds
        edges = np.linspace(FILLING_SHARE * seconds, seconds, PARTS + 1)
        begun = float(np.interp(edges[0], self._times, self._sent))
        levels = np.interp(edges, self._times, self._in_flight)
        answered = (done - (begun - levels[0])) / (seconds - edges[0])
        # A server that answers more than the rate only has more to do at the moment.
        return answered < self.rate and trend(levels, self._sent[-1] - round(begun), CERTAIN) == "over-saturated"


async def run_until_saturated(
    system: SystemUnderTest,
    job: PointPlan,
    measured: Measured,
    show: Callable[[Progress], None],
    clock: Callable[[], float] = time.monotonic,
) -> float | None:
    """Run a job, and stop an open loop whose rate is above capacity.

    Returns the seconds from the point's start to the stop, or None if the job ran to its end.
    """
    seen = EarlyStop(job.load.rate or math.inf)
    with anyio.CancelScope() as scope:

        def changed(progress: Progress) -> None:
            show(progress)
            if job.load.pattern in STEADY_PATTERNS and seen.over_saturated(clock() - measured.origin, progress.in_flight, progress.done):
                scope.cancel()

        await system.run(job, measured, changed)
    return clock() - measured.origin if scope.cancelled_caught else None
