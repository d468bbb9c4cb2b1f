"""The dashboard of a run in a terminal: the points as bars, and the point that runs now."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.analysis.report import View
from benchmarks.generator.run import Progress
from benchmarks.recording.results import Point
from benchmarks.sweep.display import Display, name, result, state

# Points that the dashboard shows, newest last; all earlier points are lines above it.
SHOWN = 12
BAR_WIDTH = 24


class Dashboard(Display):
    """Draws the points so far and the current one; a finished point is also a line above them."""

    def __init__(self, live: Live, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(sys.stderr, clock)
        self._live = live
        self._done: list[tuple[Point, View]] = []

    def start(self, point: Point, planned: int) -> None:
        self._name, self._planned, self._began = name(point), planned, self._clock()
        self.progress(Progress())

    def progress(self, progress: Progress) -> None:
        line = Text(f"{self._name}: {state(progress, self._planned, self._clock() - self._began)}", no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=max(1, self._planned), completed=progress.done)
        self._live.update(Group(*self.drawn(), line, bar))

    def end(self, point: Point, view: View | None) -> None:
        if view is not None:
            self._done.append((point, view))
        self._live.console.print(escape(f"{name(point)}: {result(view)}"), soft_wrap=True, highlight=False)

    def drawn(self) -> list[Table]:
        """Return the table of the newest points, or nothing before the first."""
        if not self._done:
            return []
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for head in ("target", "load", "tokens/s", ""):
            table.add_column(head)
        for head in ("TTFT p50", "TTFT p99", "TPOT p50", "SLO met", "valid"):
            table.add_column(head, justify="right")
        peak = max(view.summary.tokens_per_second for _, view in self._done) or 1.0
        for point, view in self._done[-SHOWN:]:
            found = view.summary
            bar = ProgressBar(total=peak, completed=found.tokens_per_second, width=BAR_WIDTH)
            times = [_ms(found.ttft.at("p50")), _ms(found.ttft.at("p99")), _ms(found.tpot.at("p50"))]
            met = "-" if found.attainment is None else f"{found.attainment:.1%}"
            table.add_row(
                escape(point.target), point.load, f"{found.tokens_per_second:,.1f}", bar, *times, met, "yes" if view.valid else "no"
            )
        return [table]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"


@contextmanager
def open_dashboard(console: Console | None = None) -> Iterator[Dashboard]:
    """Open the dashboard on stderr; when it closes, only the lines of the points remain."""
    with Live(console=console or Console(stderr=True), transient=True, refresh_per_second=4) as live:
        yield Dashboard(live)
