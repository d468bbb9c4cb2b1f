"""Compares two runs of a page, as `python -m benchmarks compare` does."""

import numpy as np
from bokeh.models import ColumnDataSource, Span, UIElement

from benchmarks.analysis.compare import MARGIN, compare
from reports.page_data import Content, Named
from reports.theme import REFERENCE, chart, explain, hover

BETTER, WORSE, SAME = "#009E73", "#D55E00", "#8A8F98"


def forest(content: Content) -> UIElement:
    """Draw every figure of the second run over that of the first, with its 95 % interval."""
    if len(content.runs) < 2:
        return explain("Only one run: pass two files to compare them, the older one first.")
    return forest_of(content.runs[0], content.runs[1])


def forest_of(a: Named, b: Named) -> UIElement:
    ratios = compare(a.analysis, b.analysis).ratios
    if not ratios:
        return explain(f"{a.name} and {b.name} share no load, so they cannot be compared.")
    labels = [f"{ratio.load}: {ratio.figure}" for ratio in ratios]
    found = chart(f"{b.name} over {a.name}", "ratio, with its 95 % interval", "", y_range=labels[::-1], x_axis_type="log")
    found.height = max(260, 18 * len(labels) + 100)
    found.yaxis.major_label_text_font_size = "11px"
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
    return found
