"""The table of a run's points: one list of columns for the terminal, CSV and the report page. Pure."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import attrs

from benchmarks.analysis.summary import Distribution

if TYPE_CHECKING:
    from benchmarks.analysis.report import Analysis, View

Value: TypeAlias = str | int | float | None


@attrs.frozen
class Column:
    """One column: its heading with the unit, the value of a point, and the decimal places.

    An `optional` column is left out where no point has a value.
    """

    heading: str
    value: Callable[["View"], Value]
    digits: int = 1
    optional: bool = False

    def text(self, view: "View") -> str:
        """Return the value for people; "-" where there is none."""
        value = self.value(view)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return "-"
        return value if isinstance(value, str) else f"{value:,.{self.digits}f}"


def answered(view: "View") -> int:
    """Return the number of complete answers, whether or not they met the SLO."""
    return view.summary.outcomes.get("ok", 0) + view.summary.outcomes.get("slo_missed", 0)


def _met(view: "View") -> int | None:
    return None if view.summary.attainment is None else view.summary.outcomes.get("ok", 0)


def _latency(figure: str, quantile: str) -> Column:
    def value(view: "View") -> float | None:
        found: Distribution = getattr(view.summary, figure)
        seconds = found.at(quantile)
        return None if seconds is None else seconds * 1000

    return Column(f"{figure.upper()} {quantile} (ms)", value)


COLUMNS: tuple[Column, ...] = (
    Column("target", lambda view: view.point.target),
    Column("load", lambda view: view.point.load),
    Column("prompt", lambda view: view.point.prompt),
    Column("requests", lambda view: view.summary.requests, 0),
    Column("answered", answered, 0),
    Column("met the SLO", _met, 0, optional=True),
    Column("tokens/s", lambda view: view.summary.tokens_per_second),
    Column("requests/s", lambda view: view.summary.requests_per_second, 2),
    Column("goodput/s", lambda view: view.summary.goodput_per_second, 2, optional=True),
    *(_latency("ttft", name) for name in ("p50", "p95", "p99")),
    *(_latency("itl", name) for name in ("p50", "p99")),
    _latency("tpot", "p50"),
    *(_latency("e2e", name) for name in ("p50", "p99")),
    Column("valid", lambda view: "yes" if view.valid else "no"),
)


def columns(views: Sequence["View"]) -> list[Column]:
    """Return the columns of a table of these points."""
    return [column for column in COLUMNS if not column.optional or any(column.value(view) is not None for view in views)]


def markdown(found: "Analysis") -> str:
    """Return one line per point, then why points are not valid."""
    shown = columns(found.views)
    lines = [f"| {' | '.join(column.heading for column in shown)} |", "|" + "---|" * len(shown)]
    lines += [f"| {' | '.join(column.text(view) for column in shown)} |" for view in found.views]
    notes = [
        f"- {view.point.target}, {view.point.load}, prompt {view.point.prompt}: {'; '.join(view.faults)}"
        for view in found.views
        if view.faults
    ]
    return "\n".join(lines + (["", "Not valid:", "", *notes] if notes else []))


def as_csv(found: "Analysis") -> str:
    """Return every column as plain numbers, empty where there is no value, and each point's faults."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(column.heading for column in COLUMNS), "faults"])
    for view in found.views:
        writer.writerow([*(_plain(column, view) for column in COLUMNS), "; ".join(view.faults)])
    return text.getvalue()


def _plain(column: Column, view: "View") -> Value:
    value = column.value(view)
    return round(value, 4) if isinstance(value, float) else value
