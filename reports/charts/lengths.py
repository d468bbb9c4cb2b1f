"""How the prompt's length affects the time that a request waits."""

import itertools
from collections.abc import Callable

import numpy as np
from bokeh.models import GlyphRenderer, UIElement
from bokeh.plotting import figure

from benchmarks.analysis.report import View
from benchmarks.analysis.steady_state import Floats
from reports.charts.axes import legend
from reports.charts.figures import chart, facts, hollow_key, hover, marks
from reports.page_data import Content, Named
from reports.theme import PALETTE, explain

MIN_LENGTHS = 3
COMMAND = "python -m benchmarks sweep --prompt-lengths 128,256,512,1024 --concurrency 1"
NO_LENGTHS = f"Fewer than three prompt lengths at one concurrency. Measure with <code>{COMMAND}</code>."


def ttft_vs_prompt(content: Content) -> UIElement:
    """Draw the TTFT p50 by prompt length, with the fit a + b * tokens + c * tokens^2.

    The terms stand for set-up, linear layers and attention.
    """
    return _draw(content, "TTFT by prompt length", "ms, p50", lambda view: (view.summary.ttft.at("p50") or np.nan) * 1000, fit=True)


def throughput_vs_prompt(content: Content) -> UIElement:
    """Draw prompt and output tokens per second together: what the engine computes."""
    return _draw(content, "Tokens computed by prompt length", "prompt and output tokens/s", _computed, fit=False)


def _computed(view: View) -> float:
    return view.summary.tokens_per_second + view.summary.requests_per_second * view.summary.prompt_tokens


def _draw(content: Content, title: str, y_label: str, value: Callable[[View], float], *, fit: bool) -> UIElement:
    groups = _groups(content)
    if not groups:
        return explain(NO_LENGTHS)
    found = chart(title, "prompt tokens", y_label, x_axis_type="log", y_axis_type="log")
    points: list[GlyphRenderer] = []
    for (label, views), colour in zip(groups.items(), itertools.cycle(PALETTE), strict=False):
        columns = {"x": np.array([view.summary.prompt_tokens for view in views]), "y": np.array([value(view) for view in views])}
        points += marks(found, columns | facts(label, views), views, colour, label, size=8)
        valid = np.array([view.valid for view in views], dtype=bool)
        if fit:
            _fit(found, columns["x"][valid], columns["y"][valid], colour)
        else:
            found.line(columns["x"][valid], columns["y"][valid], color=colour, line_width=2, legend_label=label)
    hollow_key(found, [view for views in groups.values() for view in views])
    hover(found, points, [("series", "@name"), ("prompt tokens", "@x{0,0}"), (y_label, "@y{0,0.0}"), ("valid", "@valid")])
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
