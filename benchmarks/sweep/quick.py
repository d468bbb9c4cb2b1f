"""Chooses the loads of `sweep --quick`: few short closed loops, which double while that pays. Pure."""

from collections.abc import Sequence

import attrs

from benchmarks.analysis import report
from benchmarks.analysis.report import Analysis, View
from benchmarks.sweep.planner import History, Sizes, Task
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Lengths

# A knee needs five loads. A doubling that gains less than a tenth lies beyond it.
MIN_LOADS = 5
MIN_GAIN = 0.1
MAX_CONCURRENCY = 1024
# A model on a CPU needs half a minute to start, so this is an answer after two minutes.
BUDGET_SECONDS = 80.0
SIZES = Sizes(requests=4, per_client=3)


@attrs.frozen(kw_only=True)
class Quick:
    """Closed loops of 1, 2, 4, ... clients on each target, until throughput or time ends them.

    Attributes:
        staggered: As in `Load`.
        seconds: Time for all points of all targets, without starts and warm-ups.
    """

    prompt: Lengths
    staggered: bool = True
    seconds: float = BUDGET_SECONDS

    def foreseen(self, targets: Sequence[str]) -> Sequence[Task]:
        return [self._task(targets[0], 1)]

    def next(self, targets: Sequence[str], history: History) -> Task | None:
        spent = sum(point.seconds for point in history.points)
        waiting = [(len(views), target) for target in targets if self._goes_on(views := history.on(target), spent)]
        if not waiting:
            return None
        done, target = min(waiting, key=lambda each: each[0])
        return self._task(target, 2**done)

    def conclude(self, analysis: Analysis) -> tuple[str, int]:
        return report.conclusion(analysis), 0

    def _goes_on(self, views: Sequence[View], spent: float) -> bool:
        if len(views) < MIN_LOADS:
            return True
        before, last = (view.summary.tokens_per_second for view in views[-2:])
        # The next point has twice the requests, at no more than twice the speed.
        fits = spent + views[-1].point.seconds * min(2.0, 2 * before / max(last, 1e-9)) <= self.seconds
        return fits and last > before * (1 + MIN_GAIN) and 2 ** len(views) <= MAX_CONCURRENCY

    def _task(self, target: str, concurrency: int) -> Task:
        return SIZES.task(target, Load(concurrency=concurrency, staggered=self.staggered), self.prompt)
