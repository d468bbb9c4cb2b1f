"""What a run says while it measures, in lines; `benchmarks.sweep.dashboard` draws it in a terminal."""

import time
from collections.abc import Callable
from typing import TextIO

from benchmarks.analysis.report import View
from benchmarks.generator.run import Progress
from benchmarks.recording.results import Point

# Seconds until the first line about a point that runs; each pause is as long as all before it, so
# that a long point writes few lines.
FIRST = 1.0


class Display:
    """Lines, for logs: one at a point's start, few while it runs, and one with its result."""

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._name, self._planned, self._began, self._due = "", 0, 0.0, 0.0

    def start(self, point: Point, planned: int) -> None:
        self._name, self._planned = name(point), planned
        self._began, self._due = self._clock(), FIRST
        self.write(f"{self._name}: {planned} requests")

    def progress(self, progress: Progress) -> None:
        elapsed = self._clock() - self._began
        if elapsed >= self._due:
            self._due = 2 * elapsed
            self.write(f"{self._name}: {state(progress, self._planned, elapsed)}")

    def end(self, point: Point, view: View | None) -> None:
        self.write(f"{name(point)}: {result(view)}")

    def write(self, line: str) -> None:
        print(line, file=self._file, flush=True)


def name(point: Point) -> str:
    return f"point {point.number}, {point.name}"


def state(progress: Progress, planned: int, seconds: float) -> str:
    """Say how far a point is."""
    ttft = f"{progress.ttft * 1000:.0f} ms" if progress.ttft is not None else "-"
    speed = progress.tokens / seconds if seconds > 0 else 0.0
    return f"{progress.done} of {planned} answered, {progress.in_flight} in flight, {speed:,.0f} tokens/s, TTFT {ttft}"


def result(view: View | None) -> str:
    """Say what a point measured."""
    if view is None:
        return "no request was sent"
    summary = view.summary
    times = [
        f"{label} p50 {value * 1000:,.0f} ms"
        for label, found in (("TTFT", summary.ttft), ("TPOT", summary.tpot))
        if (value := found.at("p50")) is not None
    ]
    met = "" if summary.attainment is None else f"{summary.attainment:.1%} met the SLO"
    valid = "" if view.valid else f"not valid: {'; '.join(view.faults)}"
    parts = (f"{summary.tokens_per_second:,.1f} tokens/s, {summary.requests_per_second:.2f} requests/s", *times, met, valid)
    return ", ".join(part for part in parts if part)
