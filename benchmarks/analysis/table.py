"""The table of a run's points: one list of columns for the terminal, CSV and the report page. Pure."""

import csv
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import attrs

from benchmarks.analysis.outcomes import answered
from benchmarks.analysis.summary import Adapter, Distribution

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


def _met(view: "View") -> int | None:
    return None if view.summary.attainment is None else view.summary.outcomes.get("ok", 0)


def _latency(figure: str, quantile: str) -> Column:
    def value(view: "View") -> float | None:
        found: Distribution = getattr(view.summary, figure)
        seconds = found.at(quantile)
        return None if seconds is None else seconds * 1000

    return Column(f"{figure.upper()} {quantile} (ms)", value)


def joules_per_token(view: "View") -> float | None:
    """Return the energy of an output token: the GPUs' mean power over the window, by its throughput."""
    watts, rate = view.evidence.watts, view.summary.tokens_per_second
    return None if watts is None or rate <= 0 else watts / rate


def cost_per_million(view: "View", price_per_hour: float | None) -> float | None:
    """Return the cost of a million output tokens at a point's throughput, in the price's currency."""
    rate = view.summary.tokens_per_second
    return None if price_per_hour is None or rate <= 0 else price_per_hour / 3600 / rate * 1e6


def _state(view: "View") -> str:
    """Return whether a point is valid, or what a rate that the server does not serve does to it."""
    if not view.valid:
        return "no"
    return "yes" if view.unserved is None else str(view.state)


COLUMNS: tuple[Column, ...] = (
    Column("target", lambda view: view.point.target),
    Column("load", lambda view: view.point.load),
    Column("prompt", lambda view: view.point.prompt),
    Column("requests", lambda view: view.summary.requests, 0),
    Column("answered", lambda view: answered(view.summary), 0),
    Column("met the SLO", _met, 0, optional=True),
    Column("tokens/s", lambda view: view.summary.tokens_per_second),
    Column("requests/s", lambda view: view.summary.requests_per_second, 2),
    Column("goodput/s", lambda view: view.summary.goodput_per_second, 2, optional=True),
    *(_latency("ttft", name) for name in ("p50", "p95", "p99")),
    *(_latency("itl", name) for name in ("p50", "p99")),
    _latency("tpot", "p50"),
    *(_latency("e2e", name) for name in ("p50", "p99")),
    Column("J/token", joules_per_token, 3, optional=True),
    Column("cache hits (%)", lambda view: None if view.evidence.cache_hits is None else view.evidence.cache_hits * 100, 0, optional=True),
    Column("valid", _state),
)


def columns(found: "Analysis", *, optional: bool = False) -> list[Column]:
    """Return the columns of a run's table: those with a value, or with `optional` all."""
    price = found.recording.run.price_per_hour
    cost = Column("cost per 1M tokens", lambda view: cost_per_million(view, price), 3, optional=True)
    every = [*COLUMNS[:-1], cost, COLUMNS[-1]]
    return [one for one in every if optional or not one.optional or any(one.value(view) is not None for view in found.views)]


ADAPTER_HEADINGS = ("target", "load", "adapter", "requests", "answered", "TTFT p50 (ms)", "TTFT p99 (ms)", "TPOT p50 (ms)", "E2E p50 (ms)")


def adapter_rows(found: "Analysis") -> list[list[str]]:
    """Return a row for each LoRA adapter of each point, and for the model itself; none without adapters."""
    return [
        [view.point.target, view.point.load, name or found.model, f"{each.requests:,}", f"{each.answered:,}", *_times(each)]
        for view in found.views
        for name, each in view.summary.adapters.items()
    ]


def _times(each: Adapter) -> list[str]:
    shown = ((each.ttft, "p50"), (each.ttft, "p99"), (each.tpot, "p50"), (each.e2e, "p50"))
    return [_milliseconds(found, quantile) for found, quantile in shown]


def _milliseconds(found: Distribution, quantile: str) -> str:
    seconds = found.at(quantile)
    return "-" if seconds is None else f"{seconds * 1000:,.1f}"


def markdown(found: "Analysis") -> str:
    """Return one line per point, then which points are not valid, or not served."""
    shown = columns(found)
    lines = [f"| {' | '.join(column.heading for column in shown)} |", "|" + "---|" * len(shown)]
    lines += [f"| {' | '.join(column.text(view) for column in shown)} |" for view in found.views]
    if rows := adapter_rows(found):
        lines += ["", f"| {' | '.join(ADAPTER_HEADINGS)} |", "|" + "---|" * len(ADAPTER_HEADINGS)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    faulty = [f"{view.point.name}: {'; '.join(view.faults)}" for view in found.views if view.faults]
    unserved = [f"{view.point.name}: {view.state}: {view.unserved}" for view in found.views if view.valid and view.unserved is not None]
    for title, notes in (("Not valid:", faulty), ("Not served (the latencies depend on the duration):", unserved)):
        lines += ["", title, "", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines)


def as_csv(found: "Analysis") -> str:
    """Return every column as plain numbers, empty where there is no value, and each point's faults."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    every = columns(found, optional=True)
    writer.writerow([*(column.heading for column in every), "faults"])
    for view in found.views:
        writer.writerow([*(_plain(column, view) for column in every), "; ".join(view.faults) or view.unserved or ""])
    return text.getvalue()


def _plain(column: Column, view: "View") -> Value:
    value = column.value(view)
    return round(value, 4) if isinstance(value, float) else value
