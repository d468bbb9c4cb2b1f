"""Requests that met the SLO, by offered load, and how all requests ended."""

import numpy as np
from bokeh.models import GlyphRenderer, UIElement

from benchmarks.analysis.report import View
from reports.charts.axes import legend
from reports.charts.figures import bars, chart, facts, hollow_key, hover, line_through, marks
from reports.charts.stacks import stack
from reports.page_data import Content, Series
from reports.theme import REFERENCE, explain

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
NO_SLO = "This run has no SLO, so there is no goodput. Measure with <code>--slo-ttft</code> and <code>--slo-tpot</code>."


def goodput(content: Content) -> UIElement:
    """Draw requests per second that met the SLO; the others were late, refused or failed."""
    lines = [(series, views) for series in content.sweeps or content.every_series if (views := _promised(series))]
    if not lines:
        return explain(NO_SLO)
    found = chart("Goodput by offered load", "requests/s sent", "requests/s that met the SLO")
    points: list[GlyphRenderer] = []
    for series, views in lines:
        columns = {
            "x": np.array([view.offered for view in views]),
            "y": np.array([view.summary.goodput_per_second for view in views]),
            "share": np.array([view.summary.attainment for view in views]),
        } | facts(series.label, views)
        label = f"{series.label}, by {series.axis.name}"
        line_through(found, columns, views, color=series.colour, line_width=2, legend_label=label)
        points += marks(found, columns, views, series.colour, label, size=8)
    shown = [view for _, views in lines for view in views]
    most = max(view.offered for view in shown)
    found.line([0, most], [0, most], color=REFERENCE, line_dash="dotdash", legend_label="all met the SLO")
    hollow_key(found, shown)
    hover(found, points, [("series", "@name"), ("load", "@load"), ("met the SLO", "@share{0.0%}"), ("valid", "@valid")])
    legend(found)
    return found


def _promised(series: Series) -> list[View]:
    return [view for view in series.views if view.summary.goodput_per_second is not None]


def outcomes(content: Content) -> UIElement:
    """Draw how the requests of every point ended, as shares."""
    rows = content.labelled
    found = bars("How requests ended", "share of all requests", list(rows))
    ended = {name for views in rows.values() for view in views for name in view.summary.outcomes}
    names = [*OUTCOME_COLOURS, *sorted(ended - OUTCOME_COLOURS.keys())]
    shares = {name: {label: _share(views, name) for label, views in rows.items()} for name in names}
    parts = {_title(content, name): (OUTCOME_COLOURS.get(name, REFERENCE), shares[name]) for name in names}
    stack(found, parts, {}, [("outcome", "@part"), ("share", "@length{0.0%}")])
    legend(found)
    return found


def _title(content: Content, outcome: str) -> str:
    """Say what an outcome means: with an SLO, `ok` are only the answers that met it."""
    promised = any(view.summary.attainment is not None for _, view in content.views)
    return {"ok": "met the SLO" if promised else "answered", "slo_missed": "answered, but missed the SLO"}.get(outcome, outcome)


def _share(views: list[View], outcome: str) -> float:
    return sum(view.summary.outcomes.get(outcome, 0) for view in views) / max(1, sum(view.summary.requests for view in views))
