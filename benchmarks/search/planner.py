"""A search as a run's planner: which load is measured next and for how long, on every target. Pure."""

import math
from collections.abc import Sequence

import attrs

from benchmarks.analysis.report import Analysis, View
from benchmarks.recording.results import Goal, Promise
from benchmarks.search import result
from benchmarks.search.strategy import Bracket, bracket, next_load
from benchmarks.search.verdict import Verdict, judge, needed, verdicts_of
from benchmarks.sweep.planner import History, Sizes, Task
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Lengths

# While the load grows, a point is this much shorter: it only needs to tell whether a load is clearly too high.
SCOUT_SHARE = 0.5
# An open loop lasts this many times as long as an answer, so that a growing backlog shows.
ANSWERS = 6
# The first point of a search for a rate: answers to one client, whose time sets the first rate.
ALONE = 4


@attrs.frozen(kw_only=True)
class Search:
    """Searches each target for the highest load that meets the SLO.

    Attributes:
        load: The open loop whose rate is replaced, or a closed loop whose concurrency is.
        start: The first load; None chooses a rate by the time of one request alone.
        points: Maximum number of points on each target.
        repeats: Maximum number of points of one load; each lasts twice as long as the one before.
    """

    goal: Goal
    promise: Promise
    prompt: Lengths
    load: Load
    sizes: Sizes
    start: float | None = None
    points: int = 8
    repeats: int = 3

    def foreseen(self, targets: Sequence[str]) -> Sequence[Task]:
        return [self._alone(targets[0])]

    def next(self, targets: Sequence[str], history: History) -> Task | None:
        """Return the next point of the target with the fewest points, so that a drift affects all alike."""
        for target in sorted(targets, key=lambda name: len(history.on(name))):
            views = history.on(target)
            task = self._next(target, views) if len(views) < self.points else None
            if task is not None:
                return task
        return None

    def conclude(self, analysis: Analysis) -> tuple[str, int]:
        return result.conclude(analysis)

    def _next(self, target: str, views: Sequence[View]) -> Task | None:
        if self.goal.loop == "rate" and self.start is None:
            if not views:
                return self._alone(target)
            if judge(0.0, views[:1], self.goal.attainment, self.promise).outcome == "missed":
                # A request alone misses the SLO, so every rate does.
                return None
        verdicts = verdicts_of(views, self.goal, self.promise)
        found = bracket(verdicts)
        if verdicts and self._continues(verdicts[-1], found):
            return self._task(target, verdicts[-1].load, views, scout=False, repeat=verdicts[-1].points)
        load = next_load(verdicts, self._first(views), self.goal.width, whole=self.goal.loop == "concurrency")
        if load is not None:
            return self._task(target, load, views, scout=found.high is None)
        low = found.low
        if low is not None and low.outcome == "likely" and low.points < self.repeats:
            return self._task(target, low.load, views, scout=False, repeat=low.points)
        return None

    def _continues(self, last: Verdict, found: Bracket) -> bool:
        """Whether the newest load needs another, longer point.

        While the load grows, a load that probably meets the SLO is left for a higher one. Where the
        generator was the limit, a longer point would not be valid either.
        """
        if last.points >= self.repeats or (last.faults and last.outcome == "unlikely"):
            return False
        return last.outcome == "unlikely" or (last.outcome == "likely" and found.high is not None)

    def _first(self, views: Sequence[View]) -> float:
        if self.start is not None or self.goal.loop == "concurrency":
            return self.start or 1.0
        # One request at a time on average.
        return 1 / max((view.summary.e2e.at("p50") or 1.0 for view in views[:1]), default=1.0)

    def _alone(self, target: str) -> Task:
        return Task(target=target, load=Load(concurrency=1), prompt=self.prompt, requests=ALONE)

    def _task(self, target: str, load: float, views: Sequence[View], *, scout: bool, repeat: int = 0) -> Task:
        least = 0 if scout else needed(self.goal.attainment)
        longer = (SCOUT_SHARE if scout else 1.0) * 2**repeat
        if self.goal.loop == "concurrency":
            chosen = attrs.evolve(self.load, concurrency=round(load))
            requests = max(self.sizes.per_client * round(load), 0 if scout else self.sizes.requests, least)
            return Task(target=target, load=chosen, prompt=self.prompt, repeat=repeat, requests=requests * 2**repeat)
        answer = views[-1].summary.e2e.at("p50") if views else None
        # An answer of an over-saturated point is no measure of one.
        if views and views[-1].backlog is not None and views[-1].backlog.trend != "steady":
            answer = None
        seconds = max(self.sizes.seconds * longer, least / load * 2**repeat, ANSWERS * (answer or 0.0))
        chosen = attrs.evolve(self.load, rate=load)
        return Task(target=target, load=chosen, prompt=self.prompt, repeat=repeat, seconds=math.ceil(seconds))
