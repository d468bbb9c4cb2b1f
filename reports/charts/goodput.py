"""Requests that met the SLO, by offered load."""

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, Model, UIElement
from bokeh.plotting import figure

from benchmarks.analysis.report import View
from reports.page_data import Content
from reports.theme import PALETTE, REFERENCE, chart, explain, hover, legend, line_through

OUTCOME_COLOURS = {
    "ok": "#009E73",
    "slo_missed": "#E69F00",
    "refused_503": "#56B4E9",
    "refused_429": "#0072B2",
    "timeout": "#CC79A7",
    "cancelled": "#8A8F98",
    "connection": "#D55E00",
    "error": "#C0392B",
    "truncated": "#8C6D31",
    "wrong_token_count": "#7A68A6",
}


def goodput(content: Content) -> UIElement:
    """Draw requests per second that met the SLO; the others were late, refused or failed."""
    found = chart("Goodput by offered load", "requests/s sent", "requests/s that met the SLO")
    points: list[Model] = []
    most = 0.0
    lines = [(series.label, series.colour, series.sweep.views) for series in content.every_series]
    for run in content.runs:
        # Each target, and each admission policy of our own targets, is a line.
        for target in dict.fromkeys(view.point.target for view in run.analysis.open_loops):
            views = [view for view in run.analysis.open_loops if view.point.target == target]
            lines.append((f"{run.name}, {target}, open loop", PALETTE[len(lines) % len(PALETTE)], views))
    for label, colour, views in lines:
        promised = [view for view in views if view.summary.goodput_per_second is not None]
        if promised:
            points.append(_line(found, label, colour, promised))
            most = max([most, *(view.offered for view in promised)])
    if not points:
        return explain("This run has no SLO, so there is no goodput. Measure with <code>--slo-ttft</code> and <code>--slo-tpot</code>.")
    found.line([0, most], [0, most], color=REFERENCE, line_dash="dotdash", legend_label="all met the SLO")
    hover(found, points, [("series", "@name"), ("load", "@load"), ("met the SLO", "@share{0.0%}")])
    legend(found)
    return found


def _line(found: figure, label: str, colour: str, views: Sequence[View]) -> Model:
    source = ColumnDataSource(
        {
            "x": np.array([view.offered for view in views]),
            "y": np.array([view.summary.goodput_per_second for view in views]),
            "level": np.array([view.point.concurrency or view.offered for view in views]),
            "load": [view.point.load for view in views],
            "share": np.array([view.summary.attainment for view in views]),
            "name": [label] * len(views),
        }
    )
    line_through(found, source, "level", color=colour, line_width=2, legend_label=label)
    return found.scatter("x", "y", source=source, color=colour, size=8, legend_label=label)


def outcomes(content: Content) -> UIElement:
    """Draw how the requests of every point ended, as shares."""
    counts: dict[str, list[View]] = {}
    for label, view in content.labelled:
        counts.setdefault(label, []).append(view)
    labels = list(counts)
    found = chart("How requests ended", "share of all requests", "", y_range=labels[::-1])
    found.height = max(220, 22 * len(labels) + 100)
    left = np.zeros(len(labels))
    for outcome, colour in OUTCOME_COLOURS.items():
        share = np.array(
            [
                sum(view.summary.outcomes.get(outcome, 0) for view in of) / sum(view.summary.requests for view in of)
                for of in counts.values()
            ]
        )
        if share.any():
            source = ColumnDataSource({"y": labels, "left": left, "right": left + share, "share": share, "name": [outcome] * len(labels)})
            bars = found.hbar(y="y", left="left", right="right", height=0.7, color=colour, source=source, legend_label=outcome)
            hover(found, [bars], [("outcome", "@name"), ("share", "@share{0.0%}")])
            left = left + share
    legend(found)
    return found
