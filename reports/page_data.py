"""The content of a report: runs with their analyses, and the series that its charts share."""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import attrs

from benchmarks.analysis.knee import Knee
from benchmarks.analysis.rates import RateKnee, RateSaturation
from benchmarks.analysis.report import Analysis, View, analyse
from benchmarks.analysis.saturation import Saturation
from benchmarks.recording.storage import UnreadableRun, find, priced, read
from reports.reference import Reference
from reports.theme import NOT_VALID, PALETTE


@attrs.frozen
class Named:
    """A run with its name in the report."""

    name: str
    path: Path
    analysis: Analysis


@attrs.frozen
class Axis:
    """The load by which the points of a sweep differ; `label` is the axis label, with its unit."""

    name: str
    label: str
    option: str

    def at(self, view: View) -> float:
        """Return the load of a point; 0 if it has none of this kind."""
        return float((view.point.concurrency if self.name == "concurrency" else view.point.rate) or 0)


CONCURRENCY = Axis("concurrency", "concurrency", "--concurrency 1,2,4,8,16,32")
RATE = Axis("rate", "requests/s offered", "--rate 1,2,5,10,20")


@attrs.frozen
class Series:
    """The points of one target in one run that differ in their load: a line, in one colour."""

    label: str
    colour: str
    run: Named
    axis: Axis
    views: list[View]
    saturation: Saturation | RateSaturation | None

    @property
    def levels(self) -> list[float]:
        return [self.axis.at(view) for view in self.views]

    @property
    def valid(self) -> list[View]:
        """The first valid point of each load, on which sentences and tiles rest, as the verdict does."""
        found: dict[float, View] = {}
        for view in self.views:
            if view.valid:
                found.setdefault(self.axis.at(view), view)
        return list(found.values())

    @property
    def knee(self) -> tuple[float, float, float] | None:
        """The load at which the sweep saturates, with its interval; None if it was not found."""
        match self.saturation.knee if self.saturation is not None else None:
            case Knee(concurrency=at, low=low, high=high) | RateKnee(rate=at, low=low, high=high):
                return at, low, high
        return None

    @property
    def working(self) -> View | None:
        """The point where an operator would run: next to the knee, or the fastest; None without a valid one."""
        served = [view for view in self.valid if view.unserved is None] or self.valid
        if self.knee is not None:
            at = self.knee[0]
            return min(served, key=lambda view: abs(self.axis.at(view) - at), default=None)
        return max(served, key=lambda view: view.summary.tokens_per_second, default=None)


Group: TypeAlias = tuple[Named, Axis, str, str, str, list[View], Saturation | RateSaturation | None]


@attrs.define(slots=False)
class Content:
    runs: list[Named]
    reference: Reference | None = None

    @cached_property
    def every_series(self) -> list[Series]:
        """Series with the same order and colour on all charts, curves first; eight colours."""
        found: list[Group] = []
        for run in self.runs:
            found += [(run, CONCURRENCY, one.target, one.prompt, one.output, one.views, one.saturation) for one in run.analysis.sweeps]
            found += [(run, RATE, one.target, one.prompt, one.output, one.views, one.saturation) for one in run.analysis.rate_sweeps]
            swept = {view.point.number for rates in run.analysis.rate_sweeps for view in rates.views}
            others = [view for view in run.analysis.open_loops if view.point.number not in swept]
            found += [(run, RATE, view.point.target, view.point.prompt, view.point.output, [view], None) for view in others]
        found.sort(key=lambda each: len({each[1].at(view) for view in each[5]}) < 2)
        shapes = len({each[3:5] for each in found})
        return [
            Series(self._label(run, target, f"{prompt} + {output} tokens" if shapes > 1 else ""), colour, run, axis, views, saturation)
            for (run, axis, target, prompt, output, views, saturation), colour in zip(found, itertools.cycle(PALETTE), strict=False)
        ]

    def curves(self, axis: Axis) -> list[Series]:
        """Series with several loads on this axis, which make a curve."""
        return [series for series in self.every_series if series.axis is axis and len(set(series.levels)) > 1]

    @property
    def sweeps(self) -> list[Series]:
        return [series for axis in (CONCURRENCY, RATE) for series in self.curves(axis)]

    @property
    def views(self) -> Iterator[tuple[Named, View]]:
        return ((run, view) for run in self.runs for view in run.analysis.views)

    @property
    def labelled(self) -> dict[str, list[View]]:
        """The points by the name of their row; repeats share a row if both are valid, or neither is."""
        found: dict[str, list[View]] = {}
        for run, view in self.views:
            prompt = f", {view.point.prompt} tokens" if self._prompts > 1 else ""
            label = f"{self._label(run, view.point.target)}, {view.point.load}{prompt}"
            found.setdefault(label if view.valid else f"{label} ({NOT_VALID})", []).append(view)
        return found

    @property
    def _prompts(self) -> int:
        return len({view.point.prompt for _, view in self.views})

    def _label(self, run: Named, *parts: str) -> str:
        return ", ".join([*([run.name] if len(self.runs) > 1 else []), *filter(None, parts)])


def load(paths: Sequence[Path], reference: Reference | None = None, price_per_hour: float | None = None) -> Content:
    """Load files, and all runs in folders; `price_per_hour` replaces the price that a run recorded.

    Raises UnreadableRun, also if there is no run or a run is empty.
    """
    files = [file for path in paths for file in find(path)]
    if not files:
        raise UnreadableRun(f"no runs (*.json) in {', '.join(map(str, paths)) or 'an empty selection'}")
    runs = []
    for name, file in zip(_names(files), files, strict=True):
        analysis = analyse(priced(read(file), price_per_hour))
        if not analysis.views:
            raise UnreadableRun(f"{file}: the run is empty: no request was sent")
        runs.append(Named(name, file, analysis))
    return Content(runs, reference)


def _names(files: Sequence[Path]) -> list[str]:
    """Return the files' names, with the folder's name where two files have the same name."""
    stems = [file.stem for file in files]
    return [stem if stems.count(stem) == 1 else f"{file.resolve().parent.name}/{stem}" for stem, file in zip(stems, files, strict=True)]
