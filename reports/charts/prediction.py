"""How well the step-time model predicts held-out loads."""

import numpy as np
from bokeh.models import Band, ColumnDataSource, UIElement

from reports.charts.axes import legend
from reports.charts.figures import chart, hover
from reports.page_data import Content
from reports.theme import PALETTE, REFERENCE, explain

BAND = 0.1


def predicted_vs_measured(content: Content) -> UIElement:
    """Draw every load's prediction from all other loads, with a band of 10 % at the diagonal."""
    found = chart(
        "Predicted throughput by measured",
        "measured tokens/s",
        "predicted from other loads, tokens/s",
        x_axis_type="log",
        y_axis_type="log",
    )
    points, every = [], []
    models = [(run, target, model) for run in content.runs for target, model in run.analysis.capacity.items()]
    for index, (run, target, model) in enumerate(models):
        colour = PALETTE[index % len(PALETTE)]
        name = f"{f'{run.name}, ' if len(content.runs) > 1 else ''}{target}"
        measured = np.array([one.measured for one in model.held_out])
        loads = [f"concurrency {one.load.concurrency}, {one.load.prompt:.0f} + {one.load.output:.0f}" for one in model.held_out]
        columns = {"x": measured, "y": np.array([one.predicted for one in model.held_out]), "load": loads, "name": [name] * len(loads)}
        label = f"{name}: model, off by {model.error:.1%}"
        points.append(found.scatter("x", "y", source=ColumnDataSource(columns), color=colour, size=9, legend_label=label))
        if model.naive_error is not None:
            known = [one for one in model.held_out if one.naive is not None]
            x, y = [one.measured for one in known], [one.naive or 0.0 for one in known]
            found.scatter(
                x, y, color=colour, marker="x", size=9, line_width=2, legend_label=f"{name}: interpolation, off by {model.naive_error:.1%}"
            )
        every += [*measured]
    if not points:
        return explain("Too few loads for a prediction: it needs three valid closed loops on one target.")
    ends = np.array([min(every) * 0.8, max(every) * 1.25])
    source = ColumnDataSource({"x": ends, "low": ends * (1 - BAND), "high": ends * (1 + BAND)})
    found.add_layout(Band(base="x", lower="low", upper="high", source=source, fill_color=REFERENCE, fill_alpha=0.15, line_alpha=0))
    found.line(ends, ends, color=REFERENCE, legend_label="exact, with a band of 10 %")
    hover(found, points, [("series", "@name"), ("load", "@load"), ("measured", "@x{0,0}"), ("predicted", "@y{0,0}")])
    legend(found)
    return found
