"""Colours, axes and figures: every chart of ours is made here, so that they are read alike.

The palette is Okabe and Ito's for colour-blind readers, without its yellow (unreadable on white) and black (on a dark page); a
series has one colour on every chart. Figures are transparent; the page's script paints their text for light or dark.
"""

from collections.abc import Sequence
from typing import Any

from bokeh.models import CustomJSTickFormatter, Div, FixedTicker, HoverTool, LegendItem, Model
from bokeh.plotting import figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A68A6")
REFERENCE = "#8A8F98"
PROMISE = "#C0392B"
INK, GRID = "#3A3F47", "#D9DCE1"
DASHES = {"p50": "solid", "p95": "dashed", "p99": "dotted"}
MARKERS = {"p50": "circle", "p95": "square", "p99": "triangle"}
HEIGHT = 380


def chart(title: str, x: str, y: str, **options: Any) -> figure:
    """An empty figure. `x` and `y` are the axes' labels, with their unit."""
    found = figure(
        title=title,
        x_axis_label=x,
        y_axis_label=y,
        height=HEIGHT,
        min_width=360,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll=None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        **options,
    )
    found.toolbar.autohide = True
    found.toolbar.logo = None
    found.title.text_font_size = "15px"
    found.title.text_color = INK
    for axis in found.axis:
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = GRID
        axis.axis_label_text_font_style = "normal"
    found.grid.grid_line_color = GRID
    return found


def concurrency_chart(title: str, y: str, levels: Sequence[int], **options: Any) -> figure:
    """With the concurrency along x, in powers of two."""
    found = chart(title, "requests at once", y, x_axis_type="log", **options)
    found.xaxis.ticker = FixedTicker(ticks=[float(level) for level in sorted(set(levels))])
    # Without it Bokeh writes 10^0.3.
    found.xaxis.formatter = CustomJSTickFormatter(code="return String(Math.round(tick * 100) / 100)")
    found.xgrid.ticker = found.xaxis[0].ticker
    return found


def plain_numbers(found: figure) -> None:
    """On a logarithmic y axis: 250 in place of a power of ten."""
    found.yaxis.formatter = CustomJSTickFormatter(code="return Number(tick.toPrecision(3)).toLocaleString('en')")


def legend(found: figure, *, outside: bool = True) -> None:
    """One that hides a series at a click; below the plot, where it covers nothing."""
    if not found.legend:
        return
    box = found.legend[0]
    box.click_policy = "hide"
    box.label_text_color = INK
    box.label_text_font_size = "12px"
    box.background_fill_alpha = 0
    box.border_line_color = None
    box.orientation = "horizontal"
    box.ncols = 2 if len(_items(box)) > 3 else max(1, len(_items(box)))
    box.padding = box.margin = 4
    if outside:
        found.add_layout(box, "below")


def _items(box: Any) -> list[LegendItem]:
    return [item for item in box.items if isinstance(item, LegendItem)]


def hover(found: figure, renderers: Sequence[Model], tips: Sequence[tuple[str, str]]) -> None:
    found.add_tools(HoverTool(renderers=list(renderers), tooltips=list(tips)))


def explain(text: str) -> Div:
    """In place of a chart that has nothing to show: what is missing, and how to get it."""
    return Div(text=f'<div class="empty">{text}</div>', sizing_mode="stretch_width")


def note(text: str) -> Div:
    """A sentence under a chart."""
    return Div(text=f'<p class="note">{text}</p>', sizing_mode="stretch_width")
