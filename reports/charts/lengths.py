"""How the prompt's length affects the time that a request waits."""

import numpy as np
from bokeh.models import ColumnDataSource, UIElement
from bokeh.plotting import figure

from benchmarks.analysis.report import View
from benchmarks.analysis.steady_state import Floats
from reports.page_data import Content, Named
from reports.theme import PALETTE, chart, explain, hover, legend, plain_numbers

MIN_LENGTHS = 3
COMMAND = "python -m benchmarks sweep --prompt-lengths 128,256,512,1024 --concurrency 1"
NO_LENGTHS = f"Fewer than three prompt lengths at one concurrency. Measure with <code>{COMMAND}</code>."


def ttft_vs_prompt(content: Content) -> UIElement:
    """Draw the TTFT p50 by prompt length, with the fit a + b * tokens + c * tokens^2.

    The terms stand for set-up, linear layers and attention.
    """
    groups = _groups(content)
    if not groups:
        return explain(NO_LENGTHS)
    found = chart("TTFT by prompt length", "prompt tokens", "ms, p50", x_axis_type="log", y_axis_type="log")
    plain_numbers(found.xaxis[0], found.yaxis[0])
    points = []
    for index, (label, views) in enumerate(groups.items()):
        colour = PALETTE[index % len(PALETTE)]
        x = np.array([view.summary.prompt_tokens for view in views])
        y = np.array([(view.summary.ttft.at("p50") or np.nan) * 1000 for view in views])
        source = ColumnDataSource({"x": x, "y": y, "name": [label] * len(x)})
        points.append(found.scatter("x", "y", source=source, color=colour, size=8, legend_label=label))
        _fit(found, x, y, colour)
    hover(found, points, [("series", "@name"), ("prompt tokens", "@x{0,0}"), ("ms", "@y{0,0.0}")])
    legend(found)
    return found


def throughput_vs_prompt(content: Content) -> UIElement:
    """Draw prompt and output tokens per second together: what the engine computes."""
    groups = _groups(content)
    if not groups:
        return explain(NO_LENGTHS)
    found = chart("Tokens computed by prompt length", "prompt tokens", "prompt and output tokens/s", x_axis_type="log", y_axis_type="log")
    plain_numbers(found.xaxis[0], found.yaxis[0])
    for index, (label, views) in enumerate(groups.items()):
        x = [view.summary.prompt_tokens for view in views]
        y = [view.summary.tokens_per_second + view.summary.requests_per_second * view.summary.prompt_tokens for view in views]
        found.line(x, y, color=PALETTE[index % len(PALETTE)], line_width=2, legend_label=label)
        found.scatter(x, y, color=PALETTE[index % len(PALETTE)], size=8, legend_label=label)
    legend(found)
    return found


def _groups(content: Content) -> dict[str, list[View]]:
    """Group views by target and concurrency, where there are enough prompt lengths."""
    found: dict[str, list[View]] = {}
    for run, view in content.views:
        if view.point.concurrency and view.summary.ttft.at("p50"):
            found.setdefault(_label(content, run, view), []).append(view)
    kept = {label: sorted(views, key=lambda view: view.summary.prompt_tokens) for label, views in found.items()}
    return {label: views for label, views in kept.items() if len({view.point.prompt for view in views}) >= MIN_LENGTHS}


def _label(content: Content, run: Named, view: View) -> str:
    return f"{f'{run.name}, ' if len(content.runs) > 1 else ''}{view.point.target}, {view.point.load}"


def _fit(found: figure, x: Floats, y: Floats, colour: str) -> None:
    """Draw a fit by relative least squares for four lengths or more; three fit exactly."""
    if len(x) <= MIN_LENGTHS:
        return
    for degree in (2, 1):
        terms, *_ = np.linalg.lstsq(np.vander(x, degree + 1, increasing=True) / y[:, None], np.ones_like(y), rcond=None)
        # A longer prompt never takes less work, so a negative quadratic term is noise and is
        # dropped.
        if terms[-1] >= 0:
            break
    along = np.geomspace(x.min(), x.max(), 100)
    error = np.abs(np.vander(x, len(terms), increasing=True) @ terms / y - 1).mean()
    text = f"{terms[0]:.1f} ms + {terms[1] * 1000:.2f} us/token" + (f" + {terms[2] * 1e6:.3f} ns/token²" if len(terms) > 2 else "")
    fitted = np.maximum(np.vander(along, len(terms), increasing=True) @ terms, 1e-3)
    found.line(along, fitted, color=colour, line_dash="dashed", legend_label=f"{text}, off by {error:.0%}")
