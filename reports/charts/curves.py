"""Throughput and latency by load."""

import numpy as np
from bokeh.models import BoxAnnotation, ColumnDataSource, Span, UIElement, Whisker
from bokeh.plotting import figure

from benchmarks.analysis.knee import Knee
from benchmarks.analysis.summary import Distribution
from reports.page_data import Content, Series
from reports.theme import DASHES, MARKERS, PROMISE, REFERENCE, chart, concurrency_chart, explain, hover, legend, line_through, plain_numbers

NO_SWEEP = (
    "This run has no sweep. A curve needs several concurrencies: <code>python -m benchmarks sweep --concurrency 1,2,4,8,16,32</code>."
)
# Normal quantile of a 95 % interval.
Z = 1.96


def throughput_vs_concurrency(content: Content) -> UIElement:
    """Draw throughput with 95 % intervals, the ideal line, and the knee's interval."""
    if not content.sweeps:
        return explain(NO_SWEEP)
    levels = [level for series in content.sweeps for level in series.levels]
    found = concurrency_chart("Throughput by concurrency; the knee is shaded", "output tokens/s", levels, y_axis_type="log")
    plain_numbers(found.yaxis[0])
    points = []
    for series in content.sweeps:
        source = _throughputs(series)
        line_through(found, source, "x", color=series.colour, line_width=2, legend_label=series.label)
        points.append(found.scatter("x", "y", source=source, color=series.colour, fill_color="fill", size=8, legend_label=series.label))
        found.add_layout(Whisker(base="x", lower="low", upper="high", source=source, line_color=series.colour))
        _knee(found, series)
    first = content.sweeps[0]
    start = first.sweep.views[0]
    ends = np.array([min(first.levels), max(first.levels)], dtype=float)
    ideal = ends * start.summary.tokens_per_second / (start.point.concurrency or 1)
    found.line(ends, ideal, color=REFERENCE, line_dash="dotdash", legend_label="ideal: linear from the first point")
    if content.reference is not None:
        reference = content.reference
        found.line(reference.concurrency, reference.tokens_per_second, color=REFERENCE, line_dash="dashed", legend_label=reference.name)
        found.scatter(reference.concurrency, reference.tokens_per_second, color=REFERENCE, legend_label=reference.name)
    hover(found, points, [("series", "@name"), ("concurrency", "@x"), ("tokens/s", "@y{0,0.0}"), ("valid", "@valid")])
    legend(found)
    return found


def _throughputs(series: Series) -> ColumnDataSource:
    views = series.sweep.views
    rates = np.array([view.summary.tokens_per_second for view in views])
    errors = np.array([Z * np.std(view.blocks, ddof=1) / np.sqrt(len(view.blocks)) if len(view.blocks) > 1 else 0.0 for view in views])
    return ColumnDataSource(
        {
            "x": np.array(series.levels, dtype=float),
            "y": rates,
            "low": np.maximum(rates - errors, rates / 10),
            "high": rates + errors,
            "name": [series.label] * len(views),
            # Points that are not valid are hollow.
            "fill": [series.colour if view.valid else "#ffffff00" for view in views],
            "valid": ["yes" if view.valid else "no: " + "; ".join(view.faults) for view in views],
        }
    )


def _knee(found: figure, series: Series) -> None:
    verdict = series.sweep.saturation
    if verdict is not None and isinstance(verdict.knee, Knee):
        knee = verdict.knee
        found.add_layout(BoxAnnotation(left=knee.low, right=knee.high, fill_color=series.colour, fill_alpha=0.1))
        found.add_layout(Span(location=knee.concurrency, dimension="height", line_color=series.colour, line_dash="dotted"))


def latency_vs_concurrency(content: Content, figure_name: str = "ttft") -> UIElement:
    """Draw p50, p95 and p99 of TTFT, TPOT or E2E with their intervals and the SLO.

    Percentiles that the sample does not support are left out.
    """
    if not content.sweeps:
        return explain(NO_SWEEP)
    title = {"ttft": "Time to first token", "tpot": "Time per output token", "e2e": "End-to-end time"}[figure_name]
    levels = [level for series in content.sweeps for level in series.levels]
    found = concurrency_chart(f"{title} by concurrency", "ms, from the intended send", levels, y_axis_type="log")
    plain_numbers(found.yaxis[0])
    points = []
    for series in content.sweeps:
        for name, dash in DASHES.items():
            source = _latencies(series, figure_name, name)
            if len(source.data["x"]):
                label = f"{series.label}, {name}"
                line_through(found, source, "x", color=series.colour, line_dash=dash, line_width=2, legend_label=label)
                marker = MARKERS[name]
                points.append(found.scatter("x", "y", source=source, color=series.colour, marker=marker, size=7, legend_label=label))
                found.add_layout(Whisker(base="x", lower="low", upper="high", source=source, line_color=series.colour))
    if content.reference is not None and figure_name == "ttft":
        reference, times = content.reference, np.array(content.reference.ttft_p99) * 1000
        found.line(reference.concurrency, times, color=REFERENCE, line_dash="dotted", legend_label=f"{reference.name}, p99")
        found.scatter(reference.concurrency, times, color=REFERENCE, marker="triangle", legend_label=f"{reference.name}, p99")
    promises = {getattr(run.analysis.recording.run.promise, figure_name, None) for run in content.runs}
    for promise in [each for each in promises if each is not None]:
        found.add_layout(Span(location=promise * 1000, dimension="width", line_color=PROMISE, line_width=2))
        found.line([np.nan], [np.nan], color=PROMISE, line_width=2, legend_label=f"SLO: {promise * 1000:g} ms")
    hover(found, points, [("series", "@name"), ("concurrency", "@x"), ("ms", "@y{0,0.0}")])
    legend(found)
    return found


def _latencies(series: Series, figure_name: str, quantile: str) -> ColumnDataSource:
    rows = []
    for view in series.sweep.views:
        distribution: Distribution = getattr(view.summary, figure_name)
        value = distribution.quantiles.get(quantile)
        if value is not None:
            low = value.value if value.low is None else value.low
            high = value.value if value.high is None else value.high
            rows.append((float(view.point.concurrency or 0), value.value * 1000, low * 1000, high * 1000))
    columns = np.array(rows).reshape(-1, 4)
    names = [f"{series.label}, {quantile}"] * len(rows)
    return ColumnDataSource({"x": columns[:, 0], "y": columns[:, 1], "low": columns[:, 2], "high": columns[:, 3], "name": names})


def throughput_vs_latency(content: Content) -> UIElement:
    """Draw the total throughput against the speed that one user gets; right and up is better."""
    if not content.sweeps:
        return explain(NO_SWEEP)
    found = chart("Total throughput by the speed of one user", "tokens/s of one user (1 / TPOT p50)", "output tokens/s of all users")
    points = []
    for series in content.sweeps:
        views = [view for view in series.sweep.views if view.summary.tpot.at("p50")]
        source = ColumnDataSource(
            {
                "x": np.array([1 / (view.summary.tpot.at("p50") or 1.0) for view in views]),
                "y": np.array([view.summary.tokens_per_second for view in views]),
                "level": [view.point.concurrency for view in views],
                "name": [series.label] * len(views),
            }
        )
        line_through(found, source, "level", color=series.colour, line_width=2, legend_label=series.label)
        points.append(found.scatter("x", "y", source=source, color=series.colour, size=8, legend_label=series.label))
        found.text("x", "y", text="level", source=source, x_offset=7, y_offset=5, text_font_size="11px", text_color=series.colour)
    hover(
        found, points, [("series", "@name"), ("concurrency", "@level"), ("tokens/s of all users", "@y{0,0.0}"), ("of one user", "@x{0.0}")]
    )
    legend(found)
    return found
