"""The engine while a point ran, and the stages of its requests."""

import numpy as np
from bokeh.models import BoxAnnotation, UIElement
from bokeh.plotting import figure

from benchmarks.analysis.report import View
from benchmarks.analysis.stages import BLIND_STAGES, STAGES
from benchmarks.analysis.steady_state import Floats, deliveries
from reports.charts.axes import legend
from reports.charts.figures import bars, chart
from reports.charts.stacks import stack
from reports.page_data import Content
from reports.theme import PALETTE, REFERENCE, explain

STAGE_COLOURS = dict(zip((*STAGES, *BLIND_STAGES), ("#8A8F98", *PALETTE, "#B5B9C0"), strict=False))
RATE_PARTS = 60
HEIGHT = 170
START = "s from the point's start"


def engine_timelines(view: View) -> list[UIElement]:
    """Draw requests, KV cache, GPU and token rate on one time axis; the window is shaded."""
    if not view.samples:
        return [explain("The server reported nothing about its engine while this point ran (no /metrics).")]
    queue = chart("Requests in the engine", START, "requests", height=HEIGHT)
    times = np.array([sample.time for sample in view.samples])
    for name, label, colour in (
        ("running", "running", PALETTE[0]),
        ("waiting", "waiting in the engine", PALETTE[1]),
        ("admission_waiting", "waiting for admission", PALETTE[4]),
    ):
        _trace(queue, view, times, name, label, colour)
    shares = chart("KV cache and GPU", START, "share", height=HEIGHT, x_range=queue.x_range, y_range=(0, 1.02))
    _trace(shares, view, times, "kv_usage", "KV cache in use", PALETTE[2])
    _trace(shares, view, times, "gpu", "GPU busy", PALETTE[3])
    rate = chart("Output tokens", START, "tokens/s", height=HEIGHT, x_range=queue.x_range)
    moments, tokens = deliveries(view.traffic)
    # A sample of the requests has a share of the tokens.
    tokens = tokens * view.sent / len(view.traffic)
    counts, edges = np.histogram(moments, bins=RATE_PARTS, weights=tokens) if len(moments) else (np.zeros(1), np.zeros(2))
    rate.step((edges[:-1] + edges[1:]) / 2, counts / np.maximum(np.diff(edges), 1e-9), mode="center", color=PALETTE[0], line_width=2)
    start, end = view.summary.window
    for found in (queue, shares, rate):
        found.add_layout(BoxAnnotation(left=start, right=end, fill_color=REFERENCE, fill_alpha=0.1))
        legend(found)
    return [queue, shares, rate]


def _trace(found: figure, view: View, times: Floats, name: str, label: str, colour: str) -> None:
    values = np.array([np.nan if (value := getattr(sample, name)) is None else value for sample in view.samples], dtype=float)
    if not np.all(np.isnan(values)):
        found.line(times, values, color=colour, line_width=2, legend_label=label)


def stages(content: Content) -> UIElement:
    """Draw the mean request of every point as a bar of stages that sum to its end-to-end time."""
    rows = {label: found for label, views in content.labelled.items() if (found := next((v.waterfall for v in views if v.waterfall), None))}
    if not rows:
        return explain("No request was answered.")
    found = bars("Stages of the mean answered request", "ms", list(rows))
    parts = {
        stage: (colour, {label: max(0.0, each.stages.get(stage, 0.0)) * 1000 for label, each in rows.items()})
        for stage, colour in STAGE_COLOURS.items()
    }
    more = {
        "total": {label: each.end_to_end * 1000 for label, each in rows.items()},
        "residual": {label: each.residual for label, each in rows.items()},
    }
    tips = [("stage", "@part"), ("ms", "@length{0,0.00}"), ("end to end", "@total{0,0.0} ms"), ("residual", "@residual{0.00%}")]
    stack(found, parts, more, tips)
    legend(found)
    return found
