"""Decides what a run measures next. Pure: what was measured decides, so a resumed run goes on alike.

A planner keeps no state of its own. It reads the points of the recording, which an interrupted run
leaves on disk.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs
import numpy as np

from benchmarks.analysis import report
from benchmarks.analysis.report import Analysis, View
from benchmarks.recording.results import Point
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Lengths


@attrs.frozen(kw_only=True)
class Task:
    """The next point.

    Attributes:
        repeat: Number of earlier measurements of the same load.
        requests: Number of requests of a closed loop.
        seconds: Duration of an open loop.
    """

    target: str
    load: Load
    prompt: Lengths
    repeat: int = 0
    requests: int = 0
    seconds: float = 0.0

    def is_of(self, point: Point) -> bool:
        """Whether a point is a measurement of this task's load, by any repeat."""
        load = (self.load.concurrency, self.load.mean_rate(self.seconds), self.load.pattern, str(self.prompt), self.target)
        return load == (point.concurrency, point.rate, point.pattern, point.prompt, point.target)


@attrs.define
class History:
    """The complete points so far, in the order of their measurement, and their figures.

    A point without requests has no figures.
    """

    points: list[Point] = attrs.field(factory=list)
    views: dict[int, View] = attrs.field(factory=dict)

    def add(self, point: Point, view: View | None) -> None:
        self.points.append(point)
        if view is not None:
            self.views[point.number] = view

    def of(self, task: Task) -> list[View]:
        """Return the figures of every measurement of the task's load."""
        return [self.views[point.number] for point in self.points if task.is_of(point) and point.number in self.views]

    def on(self, target: str) -> list[View]:
        return [self.views[point.number] for point in self.points if point.target == target and point.number in self.views]


class Planner(Protocol):
    """Chooses the points of a run, and says what they show."""

    def foreseen(self, targets: Sequence[str]) -> Sequence[Task]:
        """Return the tasks that no measurement decides; their requests are the run's digest."""

    def next(self, targets: Sequence[str], history: History) -> Task | None:
        """Return the next task, or None at the end."""

    def conclude(self, analysis: Analysis) -> tuple[str, int]:
        """Return what was found, as Markdown, and the exit code."""


@attrs.frozen(kw_only=True)
class Sizes:
    """How long a point is.

    Attributes:
        requests: Minimum number of requests in a closed loop.
        per_client: Minimum number of requests per client in a closed loop.
        seconds: Duration of an open loop.
    """

    requests: int = 32
    per_client: int = 4
    seconds: float = 30.0

    def task(self, target: str, load: Load, prompt: Lengths, repeat: int = 0) -> Task:
        requests = max(self.requests, (load.concurrency or 0) * self.per_client)
        return Task(target=target, load=load, prompt=prompt, repeat=repeat, requests=requests, seconds=self.seconds)


@attrs.frozen(kw_only=True)
class Listed:
    """Every load at every prompt length, with repeats.

    A repeat runs after all other points, so that it meets the machine in a different state. All
    targets measure a point before the next point, so that a drift affects all of them alike.

    Attributes:
        repeats: Measurements of each load; their maximum number with a `width`.
        width: Width of a load's interval, relative to its value, at which no further repeat follows.
    """

    loads: list[Load]
    prompts: list[Lengths]
    sizes: Sizes
    repeats: int = 1
    width: float | None = None

    def foreseen(self, targets: Sequence[str]) -> Sequence[Task]:
        return list(self._tasks(targets[:1]))

    def next(self, targets: Sequence[str], history: History) -> Task | None:
        done = {(point.target, point.concurrency, point.rate, point.pattern, point.prompt, point.repeat) for point in history.points}
        for task in self._tasks(targets):
            load = task.load
            if (task.target, load.concurrency, load.mean_rate(task.seconds), load.pattern, str(task.prompt), task.repeat) in done:
                continue
            if self.width is None or not task.repeat or not is_narrow(history.of(task), self.width):
                return task
        return None

    def conclude(self, analysis: Analysis) -> tuple[str, int]:
        return report.conclusion(analysis), 0

    def _tasks(self, targets: Sequence[str]) -> Iterator[Task]:
        for repeat, prompt, load, target in itertools.product(range(self.repeats), self.prompts, self.loads, targets):
            yield self.sizes.task(target, load, prompt, repeat)


# Two-sided 95 % quantiles of Student's distribution, by degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def is_narrow(views: Sequence[View], width: float) -> bool:
    """Whether the 95 % interval of a load's figure is narrower than `width` times the figure.

    The figure is the throughput of a closed loop, and the median E2E of an open loop, whose
    throughput is only that of its arrivals. Its repeats vary by more than the parts of one point,
    so only repeats count, and one repeat has no interval.
    """
    found = np.array([figure for view in views if view.valid and (figure := _figure(view)) is not None])
    if len(found) < 2 or not found.mean():
        return False
    student = STUDENT[min(len(found) - 2, len(STUDENT) - 1)]
    return bool(2 * student * found.std(ddof=1) / math.sqrt(len(found)) <= width * found.mean())


def _figure(view: View) -> float | None:
    return view.summary.tokens_per_second if view.point.concurrency else view.summary.e2e.at("p50")
