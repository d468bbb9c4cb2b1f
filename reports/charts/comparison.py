"""Compares the runs of a page with the first one, as `python -m benchmarks compare` does."""

import html
from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, Span, UIElement

from benchmarks.analysis.compare import MARGIN, Ratio, compare
from reports.charts.axes import legend
from reports.charts.figures import bars, hover
from reports.page_data import Content, Named
from reports.theme import REFERENCE, explain

BETTER, WORSE, SAME = "#009E73", "#D55E00", "#8A8F98"


def forests(content: Content) -> list[UIElement]:
    """Draw, for each run after the first, its figures over those of the first."""
    if len(content.runs) < 2:
        return [explain("Only one run: pass two or more to compare the later ones with the first.")]
    first, *others = content.runs
    return [forest(first, other) for other in others]


def forest(a: Named, b: Named) -> UIElement:
    """Draw every figure of `b` over that of `a`, with its 95 % interval."""
    ratios = compare(a.analysis, b.analysis).ratios
    if not ratios:
        return explain(f"{html.escape(a.name)} and {html.escape(b.name)} share no load, so they cannot be compared.")
    labels = _labels(ratios)
    found = bars(f"{b.name} over {a.name}", "ratio, with its 95 % interval", labels, x_axis_type="log")
    colours = [BETTER if ratio.improved(MARGIN) else WORSE if ratio.regressed(MARGIN) else SAME for ratio in ratios]
    columns = {"y": labels, "x": np.array([ratio.value for ratio in ratios]), "colour": colours}
    columns |= {"low": np.array([ratio.low for ratio in ratios]), "high": np.array([ratio.high for ratio in ratios])}
    source = ColumnDataSource(columns)
    found.segment(x0="low", x1="high", y0="y", y1="y", color="colour", line_width=3, source=source)
    points = found.scatter("x", "y", color="colour", size=9, source=source)
    found.add_layout(Span(location=1, dimension="height", line_color=REFERENCE))
    for side in (1 - MARGIN, 1 + MARGIN):
        found.add_layout(Span(location=side, dimension="height", line_color=REFERENCE, line_dash="dotted"))
    hover(found, [points], [("figure", "@y"), ("ratio", "@x{0.000}"), ("interval", "@low{0.000} to @high{0.000}")])
    for colour, words in ((BETTER, "better"), (WORSE, "worse"), (SAME, f"within {MARGIN:.0%}, or not certain")):
        found.scatter([np.nan], [np.nan], color=colour, size=9, legend_label=words)
    legend(found)
    return found


def _labels(ratios: Sequence[Ratio]) -> list[str]:
    """Name each row by the parts of its load in which the rows differ, and its figure."""
    loads = [ratio.load.split(", ") for ratio in ratios]
    same = [len(set(column)) == 1 for column in zip(*loads, strict=True)]
    kept = [", ".join(part for part, equal in zip(load, same, strict=True) if not equal) for load in loads]
    return [f"{load}: {ratio.figure}" if load else ratio.figure for load, ratio in zip(kept, ratios, strict=True)]
