"""Throughput and latency by load: by concurrency, or by the rate of an open loop."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import BoxAnnotation, GlyphRenderer, Model, Span, UIElement
from bokeh.plotting import figure

from benchmarks.analysis.report import View
from benchmarks.analysis.summary import Distribution
from reports.charts.axes import key, legend, log_ticker
from reports.charts.figures import chart, facts, hollow_key, hover, line_through, marks, parts, whiskers
from reports.page_data import CONCURRENCY, Axis, Content, Series
from reports.theme import DASHES, MARKERS, PROMISE, REFERENCE, explain

# Normal quantile of a 95 % interval.
Z = 1.96
TITLES = {"ttft": "Time to first token", "tpot": "Time per token", "e2e": "End-to-end time"}
TIPS = [("series", "@name"), ("load", "@load")]
VALID = ("valid", "@valid")


def no_curve(axis: Axis) -> UIElement:
    command = f"<code>python -m benchmarks sweep {axis.option}</code>"
    return explain(f"This run has no curve by {axis.name}. A curve needs several loads: {command}.")


def load_chart(title: str, y: str, axis: Axis, series: Sequence[Series], **options: Any) -> figure:
    """Return a figure with the load along x; the loads that were measured have small ticks."""
    found = chart(title, axis.label, y, x_axis_type="log", y_axis_type="log", **options)
    found.xaxis.ticker = log_ticker(minor={level for each in series for level in each.levels})
    found.xgrid.ticker = found.xaxis[0].ticker
    return found


def throughput(content: Content, axis: Axis = CONCURRENCY) -> UIElement:
    """Draw throughput with 95 % intervals, the ideal line, and the knee's interval."""
    curves = content.curves(axis)
    if not curves:
        return no_curve(axis)
    found = load_chart(f"Throughput by {axis.name}", "output tokens/s", axis, curves)
    points: list[GlyphRenderer] = []
    for series in curves:
        columns = _throughputs(series)
        line_through(found, columns, series.views, color=series.colour, line_width=2, legend_label=series.label)
        points += marks(found, columns, series.views, series.colour, series.label, size=8)
        whiskers(found, columns, series.views, series.colour)
        _knee(found, series)
    if any(series.knee for series in curves):
        found.scatter([np.nan], [np.nan], marker="square", size=14, color=REFERENCE, alpha=0.3, legend_label="knee")
    _ideal(found, curves[0])
    if content.reference is not None and axis is CONCURRENCY:
        reference = content.reference
        found.line(reference.concurrency, reference.tokens_per_second, color=REFERENCE, line_dash="dashed", legend_label=reference.name)
        found.scatter(reference.concurrency, reference.tokens_per_second, color=REFERENCE, legend_label=reference.name)
    hollow_key(found, [view for series in curves for view in series.views])
    hover(found, points, [*TIPS, ("tokens/s", "@y{0,0.0}"), VALID])
    legend(found)
    return found


def _throughputs(series: Series) -> dict[str, Any]:
    views = series.views
    rates = np.array([view.summary.tokens_per_second for view in views])
    errors = np.array([Z * np.std(view.blocks, ddof=1) / np.sqrt(len(view.blocks)) if len(view.blocks) > 1 else 0.0 for view in views])
    intervals = {"low": np.maximum(rates - errors, rates / 10), "high": rates + errors}
    return {"x": np.array(series.levels), "y": rates, **intervals, **facts(series.label, views)}


def _knee(found: figure, series: Series) -> None:
    if series.knee is not None:
        at, low, high = series.knee
        found.add_layout(BoxAnnotation(left=low, right=high, fill_color=series.colour, fill_alpha=0.1))
        found.add_layout(Span(location=at, dimension="height", line_color=series.colour, line_dash="dotted"))


def _ideal(found: figure, series: Series) -> None:
    """Draw the line through the first valid point along which throughput grows with the load."""
    if series.valid:
        start = series.valid[0]
        ends = np.array([min(series.levels), max(series.levels)])
        ideal = ends * start.summary.tokens_per_second / series.axis.at(start)
        found.line(ends, ideal, color=REFERENCE, line_dash="dotdash", legend_label="ideal: linear from the first valid point")


def latency(content: Content, axis: Axis = CONCURRENCY, name: str = "ttft") -> UIElement:
    """Draw p50, p95 and p99 of TTFT, TPOT or E2E with their intervals and the SLO.

    Percentiles that the sample does not support are left out.
    """
    curves = content.curves(axis)
    if not curves:
        return no_curve(axis)
    found = load_chart(
        f"{TITLES[name]} by {axis.name}", "ms, from the intended send" if name != "tpot" else "ms per output token", axis, curves
    )
    points: list[GlyphRenderer] = []
    drawn: dict[str, list[GlyphRenderer]] = {}
    for series in curves:
        for quantile, dash in DASHES.items():
            columns, views = _latencies(series, name, quantile)
            if views:
                line = line_through(found, columns, views, color=series.colour, line_dash=dash, line_width=2, legend_label=series.label)
                dots = marks(found, columns, views, series.colour, series.label, marker=MARKERS[quantile], size=7)
                drawn.setdefault(quantile, []).extend([line, *dots])
                points += dots
                whiskers(found, columns, views, series.colour)
    for quantile, renderers in drawn.items():
        key(found, quantile, renderers, line_dash=DASHES[quantile], line_width=2)
    _reference_latency(found, content, axis, name)
    _promises(found, content, name)
    hollow_key(found, [view for series in curves for view in series.views])
    hover(found, points, [*TIPS, ("percentile", "@quantile"), ("ms", "@y{0,0.0}"), VALID])
    legend(found)
    return found


def _reference_latency(found: figure, content: Content, axis: Axis, name: str) -> None:
    if content.reference is not None and name == "ttft" and axis is CONCURRENCY:
        reference, times = content.reference, np.array(content.reference.ttft_p99) * 1000
        found.line(reference.concurrency, times, color=REFERENCE, line_dash="dotted", legend_label=f"{reference.name}, p99")
        found.scatter(reference.concurrency, times, color=REFERENCE, marker="triangle", legend_label=f"{reference.name}, p99")


def _promises(found: figure, content: Content, name: str) -> None:
    for promise in sorted({each for run in content.runs if (each := getattr(run.analysis.recording.run.promise, name, None))}):
        found.add_layout(Span(location=promise * 1000, dimension="width", line_color=PROMISE, line_width=2))
        found.line([np.nan], [np.nan], color=PROMISE, line_width=2, legend_label=f"SLO: {promise * 1000:g} ms")


def _latencies(series: Series, name: str, quantile: str) -> tuple[dict[str, Any], list[View]]:
    rows, views = [], []
    for view in series.views:
        distribution: Distribution = getattr(view.summary, name)
        value = distribution.quantiles.get(quantile)
        if value is not None:
            low = value.value if value.low is None else value.low
            high = value.value if value.high is None else value.high
            rows.append((series.axis.at(view), value.value * 1000, low * 1000, high * 1000))
            views.append(view)
    # Times are known to the microsecond; finer differences would only be noise on an axis.
    columns = np.round(rows, 3).reshape(-1, 4)
    named = {"x": columns[:, 0], "y": columns[:, 1], "low": columns[:, 2], "high": columns[:, 3], "quantile": [quantile] * len(rows)}
    return named | facts(series.label, views), views


def throughput_vs_latency(content: Content) -> UIElement:
    """Draw the total throughput against the speed that one user gets; right and up is better."""
    curves = content.curves(CONCURRENCY)
    if not curves:
        return no_curve(CONCURRENCY)
    found = chart("Throughput by one user's speed", "tokens/s of one user (1 / TPOT p50)", "output tokens/s of all users")
    points: list[Model] = []
    shown: list[View] = []
    for series in curves:
        views = [view for view in series.views if view.summary.tpot.at("p50")]
        columns = {
            "x": np.round([1 / (view.summary.tpot.at("p50") or 1.0) for view in views], 2),
            "y": np.array([view.summary.tokens_per_second for view in views]),
            "level": [str(view.point.concurrency) for view in views],
        } | facts(series.label, views)
        line_through(found, columns, views, color=series.colour, line_width=2, legend_label=series.label)
        points += marks(found, columns, views, series.colour, series.label, size=8)
        for _, source in parts(columns, views):
            found.text("x", "y", text="level", source=source, x_offset=7, y_offset=5, text_font_size="11px", text_color=series.colour)
        shown += views
    hollow_key(found, shown)
    hover(found, points, [*TIPS, ("tokens/s of all users", "@y{0,0.0}"), ("of one user", "@x{0.0}"), VALID])
    legend(found)
    return found
