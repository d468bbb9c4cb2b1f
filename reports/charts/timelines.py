"""The engine while a point ran, and the stages of its requests."""

import numpy as np
from bokeh.models import BoxAnnotation, ColumnDataSource, UIElement
from bokeh.plotting import figure

from benchmarks.analysis.report import View
from benchmarks.analysis.stages import BLIND_STAGES, STAGES
from benchmarks.analysis.steady_state import Floats, deliveries
from reports.page_data import Content
from reports.theme import PALETTE, REFERENCE, chart, explain, hover, legend

STAGE_COLOURS = dict(zip((*STAGES, *BLIND_STAGES), ("#8A8F98", *PALETTE, "#B5B9C0"), strict=False))
RATE_PARTS = 60


def engine_timelines(view: View) -> list[UIElement]:
    """Draw requests, KV cache, GPU and token rate on one time axis; the window is shaded."""
    if not view.samples:
        return [explain("The server reported nothing about its engine while this point ran (no /metrics).")]
    queue = chart("Requests in the engine", "", "requests")
    times = np.array([sample.time for sample in view.samples])
    for name, label, colour in (
        ("running", "running", PALETTE[0]),
        ("waiting", "waiting in the engine", PALETTE[1]),
        ("admission_waiting", "waiting for admission", PALETTE[4]),
    ):
        _trace(queue, view, times, name, label, colour)
    shares = chart("KV cache and GPU", "", "share", x_range=queue.x_range, y_range=(0, 1.02))
    _trace(shares, view, times, "kv_usage", "KV cache in use", PALETTE[2])
    _trace(shares, view, times, "gpu", "GPU busy", PALETTE[3])
    rate = chart("Output tokens", "s from the point's start", "tokens/s", x_range=queue.x_range)
    moments, tokens = deliveries(view.traffic)
    # A sample of the requests has a share of the tokens.
    tokens = tokens * view.sent / len(view.traffic)
    counts, edges = np.histogram(moments, bins=RATE_PARTS, weights=tokens) if len(moments) else (np.zeros(1), np.zeros(2))
    rate.step((edges[:-1] + edges[1:]) / 2, counts / np.maximum(np.diff(edges), 1e-9), mode="center", color=PALETTE[0], line_width=2)
    start, end = view.summary.window
    for found in (queue, shares, rate):
        found.height = 240
        found.add_layout(BoxAnnotation(left=start, right=end, fill_color=REFERENCE, fill_alpha=0.1))
        legend(found)
    return [queue, shares, rate]


def _trace(found: figure, view: View, times: Floats, name: str, label: str, colour: str) -> None:
    values = np.array([np.nan if (value := getattr(sample, name)) is None else value for sample in view.samples], dtype=float)
    if not np.all(np.isnan(values)):
        found.line(times, values, color=colour, line_width=2, legend_label=label)


def stages(content: Content) -> UIElement:
    """Draw the mean request of every point as a bar of stages that sum to its end-to-end time."""
    rows = [(label, view.waterfall) for label, view in content.labelled if view.waterfall]
    if not rows:
        return explain("No request was answered.")
    labels = list(dict.fromkeys(label for label, _ in rows))
    waterfalls = dict(reversed(rows))
    found = chart("Where the time goes: the mean answered request", "ms", "", y_range=labels[::-1])
    found.height = max(200, 22 * len(labels) + 90)
    left = np.zeros(len(labels))
    for stage, colour in STAGE_COLOURS.items():
        lengths = np.array([max(0.0, waterfalls[label].stages.get(stage, 0.0)) * 1000 for label in labels])
        if lengths.any():
            total = [waterfalls[label].end_to_end * 1000 for label in labels]
            residual = [waterfalls[label].residual for label in labels]
            columns = {"y": labels, "left": left, "right": left + lengths, "ms": lengths, "stage": [stage] * len(labels)}
            source = ColumnDataSource(columns | {"total": total, "residual": residual})
            bars = found.hbar(y="y", left="left", right="right", height=0.7, color=colour, source=source, legend_label=stage)
            hover(
                found,
                [bars],
                [("stage", "@stage"), ("ms", "@ms{0,0.00}"), ("end to end", "@total{0,0.0} ms"), ("residual", "@residual{0.00%}")],
            )
            left = left + lengths
    legend(found)
    return found
