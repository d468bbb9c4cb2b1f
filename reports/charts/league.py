"""The goodput of every policy at one load, and which of them meet the SLO and serve all lengths."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Span
from bokeh.plotting import figure

from reports.charts.axes import legend
from reports.charts.figures import BAR_SHARE, bars, hover
from reports.theme import MIDDLE, PROMISE

# The policy of this project.
OURS = "lategate"
# At most this share of the admitted requests may be late, and long requests must be served at least
# this often, relative to short ones.
MAX_LATE, MIN_CLASS_RATIO = 0.01, 0.9
KINDS = {
    "meets the SLO": "#009E73",
    f"serves some lengths less than {MIN_CLASS_RATIO} times as often": "#56B4E9",
    f"more than {MAX_LATE:.0%} late": "#E69F00",
}
TIPS = [("policy", "@y"), ("tuned to", "@variant"), ("goodput", "@goodput{0.00}/s (@low{0.00} to @high{0.00})"), ("late", "@late{0.00%}")]
TIPS += [("class ratio", "@class_ratio{0.00}"), ("refused", "@refused{0%}"), ("TTFT p99", "@ttft_p99{0.00} s")]


def mean(row: Mapping[str, Any]) -> float:
    """Return the goodput of a row, as the mean of its seeds."""
    return statistics.fmean(row["goodput"])


def label(row: Mapping[str, Any]) -> str:
    """Return the name of a row's policy in a chart."""
    return f"{OURS} (ours)" if row["contender"] == OURS else str(row["contender"])


def kind(row: Mapping[str, Any]) -> str:
    """Return the entry of `KINDS` that a row belongs to."""
    good, unfair, late = KINDS
    return late if row["late"] > MAX_LATE else unfair if row["class_ratio"] < MIN_CLASS_RATIO else good


def standings(title: str, rows: Sequence[Mapping[str, Any]], reference: str) -> figure:
    """Draw a bar for each policy, the best first; a line shows the goodput of the `reference`."""
    ordered = sorted(rows, key=mean, reverse=True)
    found = bars(title, "requests/s that met the SLO", [label(row) for row in ordered])
    found.x_range.start = 0
    for name, colour in KINDS.items():
        if chosen := [row for row in ordered if kind(row) == name]:
            drawn = found.hbar(y="y", right="goodput", height=BAR_SHARE, source=_source(chosen), color=colour, legend_label=name)
            hover(found, [drawn], TIPS)
    found.segment(
        x0="low", x1="high", y0="y", y1="y", source=_source(ordered), color=MIDDLE, line_width=2, legend_label="range of the seeds"
    )
    best = max((mean(row) for row in rows if row["contender"] == reference), default=None)
    if best:
        found.add_layout(Span(location=best, dimension="height", line_color=PROMISE, line_dash="dashed"))
        found.line([np.nan], [np.nan], color=PROMISE, line_dash="dashed", legend_label="best fixed limit in hindsight")
    legend(found)
    return found


def _source(rows: Sequence[Mapping[str, Any]]) -> ColumnDataSource:
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in ("late", "class_ratio", "refused", "ttft_p99")}
    columns |= {"y": [label(row) for row in rows], "variant": [row["variant"] or "-" for row in rows]}
    columns |= {"goodput": np.array([mean(row) for row in rows])}
    return ColumnDataSource(
        columns | {name: np.array([end(row["goodput"]) for row in rows]) for name, end in (("low", min), ("high", max))}
    )
