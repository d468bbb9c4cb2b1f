"""Colours, axes and figures. Every chart is made here, so that all charts look alike.

The palette is Okabe and Ito's for colour-blind readers, without its yellow (unreadable on white)
and black (unreadable on a dark page). A series has the same colour on every chart. Figures are
transparent; the page's script paints their text for light or dark.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import Axis, ColumnDataSource, CustomJSTickFormatter, Div, FixedTicker, HoverTool, LegendItem, Model
from bokeh.plotting import figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A68A6")
REFERENCE = "#8A8F98"
PROMISE = "#C0392B"
INK, GRID = "#3A3F47", "#D9DCE1"
# For elements that do not follow the theme: readable on light and on dark.
MIDDLE = "#7D8694"
DASHES = {"p50": "solid", "p95": "dashed", "p99": "dotted"}
MARKERS = {"p50": "circle", "p95": "square", "p99": "triangle"}
HEIGHT = 340
LEGEND_ROW = 22

# A string instead of an InlineStyleSheet, because a Bokeh model belongs to one document and ends
# with it.
STYLE = """
    /* Narrower than its content: a wide table scrolls within itself. */
    :host { min-width: 0; color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
    .bk-clearfix { display: block !important; width: 100%; }
    h1 { font-size: 26px; margin: 0 90px 4px 0; } h2 { font-size: 19px; margin: 18px 0 6px; } p { margin: 4px 0; }
    a { color: var(--accent); } code { background: var(--tile); border-radius: 4px; padding: 1px 5px; font-size: 13px; }
    .soft, .note { color: var(--soft); font-size: 14px; } .good { color: var(--good); } .bad { color: var(--bad); }
    .banner { border-left: 4px solid currentColor; padding: 4px 12px; margin: 10px 0; } .banner * { color: var(--ink); }
    .verdict { font-size: 18px; line-height: 1.45; border-left: 4px solid var(--accent); padding: 4px 14px; margin: 12px 0; }
    .verdict ul { font-size: 15px; color: var(--soft); margin: 6px 0 0; padding-left: 20px; }
    .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 8px 0 14px; }
    .tile { background: var(--tile); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
    .tile b { display: block; font-size: 22px; font-weight: 600; } .tile span { color: var(--soft); font-size: 13px; }
    .empty { border: 1px dashed var(--line); border-radius: 8px; color: var(--soft); padding: 28px; text-align: center; margin: 8px; }
    .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
    th, td { border-bottom: 1px solid var(--line); padding: 4px 10px; text-align: right; white-space: nowrap; }
    th { color: var(--soft); font-weight: 600; } td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
    dt { color: var(--soft); } dd { margin: 0 0 6px 0; }
    dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 14px; margin: 6px 0; }
    dl.facts dd { margin: 0; overflow-wrap: anywhere; }
    """


def chart(title: str, x: str, y: str, **options: Any) -> figure:
    """Return an empty figure; `x` and `y` are the axis labels, with units."""
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
    """Return a figure with the concurrency along x, in powers of two."""
    found = chart(title, "concurrency", y, x_axis_type="log", **options)
    found.xaxis.ticker = FixedTicker(ticks=[float(level) for level in sorted(set(levels))])
    # By default Bokeh writes 10^0.3.
    found.xaxis.formatter = CustomJSTickFormatter(code="return String(Math.round(tick * 100) / 100)")
    found.xgrid.ticker = found.xaxis[0].ticker
    return found


def plain_numbers(*axes: Axis) -> None:
    """Label logarithmic axes at 1, 2 and 5 of every decade, and write 250, not a power of ten."""
    for axis in axes:
        axis.ticker = FixedTicker(ticks=[digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)])
        axis.formatter = CustomJSTickFormatter(code="return Number(tick.toPrecision(3)).toLocaleString('en')")


def line_through(found: figure, source: ColumnDataSource, key: str, **style: Any) -> None:
    """Draw a line through the mean point of each value of a column; single points are repeats."""
    keys = np.asarray(source.data[key])
    levels = np.unique(keys)
    x, y = ([np.mean(np.asarray(source.data[name])[keys == level]) for level in levels] for name in ("x", "y"))
    found.line(x, y, **style)


def legend(found: figure) -> None:
    """Put the legend below the plot, with room of its own; a click hides a series."""
    if not found.legend:
        return
    box = found.legend[0]
    box.click_policy = "hide"
    box.stylesheets = [".bk-label { color: var(--ink) !important; }"]
    box.label_text_font_size = "12px"
    box.background_fill_alpha = 0
    box.border_line_color = None
    box.orientation = "horizontal"
    box.ncols = 2 if len(_items(box)) > 3 else max(1, len(_items(box)))
    box.padding = box.margin = 4
    found.add_layout(box, "below")
    found.height += LEGEND_ROW * -(-len(_items(box)) // box.ncols)


def _items(box: Any) -> list[LegendItem]:
    return [item for item in box.items if isinstance(item, LegendItem)]


def hover(found: figure, renderers: Sequence[Model], tips: Sequence[tuple[str, str]]) -> None:
    found.add_tools(HoverTool(renderers=list(renderers), tooltips=list(tips)))


def explain(text: str) -> Div:
    """Return a text instead of an empty chart: what is missing, and how to get it."""
    return Div(text=f'<div class="empty">{text}</div>', sizing_mode="stretch_width", stylesheets=[STYLE])
