"""Axes with ticks at 1, 2 and 5, and legends that are always whole.

A logarithmic axis labels 1, 2 and 5 of every decade. Where fewer than three of these are in view, it
labels equal steps of 1, 2 or 5. Bokeh's own ticks of linear axes are such steps.
"""

from collections.abc import Iterable

import numpy as np
from bokeh.models import CustomJSTicker, CustomJSTickFormatter, GlyphRenderer
from bokeh.plotting import figure

from reports.theme import LEGEND_STYLE, REFERENCE

MIN_TICKS = 3
TICKS = """
const [low, high] = [Math.min(cb_data.start, cb_data.end), Math.max(cb_data.start, cb_data.end)]
const digits = Math.log10(high / low) > 5 ? [1] : [1, 2, 5]
const found = []
for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
  for (const digit of digits) found.push(Number(`${digit}e${power}`))
const seen = found.filter((tick) => tick >= low && tick <= high)
if (seen.length >= least) return seen
const rough = (high - low) / least
const power = 10 ** Math.floor(Math.log10(rough))
const step = [5, 2, 1].find((digit) => digit * power <= rough) * power
const count = Math.floor(high / step) - Math.ceil(low / step) + 1
return Array.from({length: count}, (_, index) => Number(((Math.ceil(low / step) + index) * step).toPrecision(12)))
"""
# A logarithm's ticks have few digits; by default Bokeh writes 10^0.3.
PLAIN = "return Number(tick.toPrecision(6)).toLocaleString('en', {maximumFractionDigits: 6})"


def log_ticker(minor: Iterable[float] = ()) -> CustomJSTicker:
    """Return the ticks of a logarithmic axis; `minor` are the values with small ticks."""
    code = TICKS.replace("least", str(MIN_TICKS))
    return CustomJSTicker(major_code=code, minor_code=f"return {sorted({float(value) for value in minor})}")


def plain_numbers() -> CustomJSTickFormatter:
    """Write 1,250 and 0.5, not powers of ten."""
    return CustomJSTickFormatter(code=PLAIN)


def set_ticks(found: figure, *, x_type: str, y_type: str) -> None:
    for axis, grid, kind in ((found.xaxis, found.xgrid, x_type), (found.yaxis, found.ygrid, y_type)):
        if kind == "log":
            axis.ticker = log_ticker()
            axis.formatter = plain_numbers()
            grid.ticker = axis[0].ticker
        elif kind == "linear":
            axis.formatter = plain_numbers()


def legend(found: figure) -> None:
    """Put the legend below the plot, where it wraps; a click hides a series."""
    if not found.legend:
        return
    box = found.legend[0]
    box.click_policy = "hide"
    box.stylesheets = [LEGEND_STYLE]
    box.label_text_font_size = "12px"
    box.background_fill_alpha = 0
    box.border_line_color = None
    box.orientation = "horizontal"
    box.location = "bottom_left"
    box.padding = box.margin = 0
    found.add_layout(box, "below")


def key(found: figure, label: str, follow: Iterable[GlyphRenderer] = (), **style: object) -> None:
    """Add an entry to the legend that stands for a style, not a series; a click hides `follow`."""
    sample = found.line([np.nan], [np.nan], color=REFERENCE, legend_label=label, **style)
    for renderer in follow:
        sample.js_link("visible", renderer, "visible")
