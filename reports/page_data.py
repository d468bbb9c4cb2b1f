"""The content of a report: runs with their analyses, and the series that its charts share."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import attrs

from benchmarks.analysis.report import Analysis, Sweep, View, analyse
from benchmarks.recording.storage import UnreadableRun, find, read
from reports.reference import RTX_4090, Reference
from reports.theme import PALETTE


@attrs.frozen
class Named:
    """A run with its name in the report."""

    name: str
    path: Path
    analysis: Analysis


@attrs.frozen
class Series:
    """One sweep of one run: a line on the charts, in one colour."""

    label: str
    colour: str
    run: Named
    sweep: Sweep

    @property
    def levels(self) -> list[int]:
        return [view.point.concurrency or 0 for view in self.sweep.views]


@attrs.define(slots=False)
class Content:
    runs: list[Named]
    reference: Reference | None = RTX_4090

    @cached_property
    def every_series(self) -> list[Series]:
        """Series with the same order and colour on all charts, sweeps first; eight colours."""
        found = [(run, sweep) for run in self.runs for sweep in run.analysis.sweeps]
        found.sort(key=lambda each: each[1].saturation is None)
        return [Series(self._label(run, sweep), PALETTE[index % len(PALETTE)], run, sweep) for index, (run, sweep) in enumerate(found)]

    @property
    def sweeps(self) -> list[Series]:
        """Series with several concurrencies, which make a curve."""
        return [series for series in self.every_series if len(set(series.levels)) > 1]

    @property
    def views(self) -> Iterator[tuple[Named, View]]:
        return ((run, view) for run in self.runs for view in run.analysis.views)

    @property
    def labelled(self) -> Iterator[tuple[str, View]]:
        """Every point with the name of its row; repeats share a name."""
        return ((f"{run.name}: {view.point.target}, {view.point.load}, {view.point.prompt}", view) for run, view in self.views)

    def _label(self, run: Named, sweep: Sweep) -> str:
        parts = [run.name] if len(self.runs) > 1 else []
        parts.append(sweep.target)
        if len({(other.prompt, other.output) for each in self.runs for other in each.analysis.sweeps}) > 1:
            parts.append(f"{sweep.prompt} + {sweep.output} tokens")
        return ", ".join(parts)


def load(paths: Sequence[Path], reference: Reference | None = RTX_4090) -> Content:
    """Load files, and all runs in folders.

    Raises UnreadableRun, also if there is no run or a run is empty.
    """
    files = [file for path in paths for file in find(path)]
    if not files:
        raise UnreadableRun(f"no runs (*.json) in {', '.join(map(str, paths)) or 'an empty selection'}")
    runs = []
    for name, file in zip(_names(files), files, strict=True):
        analysis = analyse(read(file))
        if not analysis.views:
            raise UnreadableRun(f"{file}: the run is empty: no request was sent")
        runs.append(Named(name, file, analysis))
    return Content(runs, reference)


def _names(files: Sequence[Path]) -> list[str]:
    """Return the files' names, with the folder's name where two files have the same name."""
    stems = [file.stem for file in files]
    return [stem if stems.count(stem) == 1 else f"{file.resolve().parent.name}/{stem}" for stem, file in zip(stems, files, strict=True)]
