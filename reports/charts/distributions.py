"""Distributions of latencies, beyond their percentiles."""

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, CustomJSTickFormatter, FixedTicker, LogColorMapper, UIElement

from benchmarks.analysis.report import View
from benchmarks.analysis.steady_state import Floats
from reports.charts.axes import legend, log_ticker, plain_numbers
from reports.charts.figures import chart, hover
from reports.page_data import Content
from reports.theme import MIDDLE, explain

# Ticks of the axis 1 / (1 - p), as in HdrHistogram's spectrum: each step to the right is ten times
# rarer.
SPECTRUM = {0.5: "p50", 0.9: "p90", 0.95: "p95", 0.99: "p99", 0.999: "p99.9"}
CURVE_POINTS = 200
HEAT_COLUMNS, HEAT_ROWS = 60, 30
HEAT_PALETTE = ("#EAF3FA", "#C6DFF0", "#94C4E3", "#5CA3D0", "#2F80B9", "#12609D", "#08457A", "#062F54")


def spectrum(content: Content) -> UIElement:
    """Draw TTFT by percentile on the axis 1 / (1 - p), at the highest valid load of each series.

    Solid lines count from the intended send, dashed lines from the actual send.
    """
    found = chart("TTFT by percentile, highest valid load", "percentile", "ms", x_axis_type="log", y_axis_type="log")
    found.xaxis.ticker = FixedTicker(ticks=[1 / (1 - share) for share in SPECTRUM])
    names = ",".join(f"[{1 / (1 - share):.6f}, '{name}']" for share, name in SPECTRUM.items())
    found.xaxis.formatter = CustomJSTickFormatter(code=f"for (const [at, name] of [{names}]) if (Math.abs(at - tick) < 1e-3) return name")
    lines = []
    shown = [(series, series.valid[-1]) for series in content.every_series if series.valid]
    for series, view in shown:
        label, colour = f"{series.label}, {view.point.load}", series.colour
        for kind, dash in (("intended", "solid"), ("actual", "dashed")):
            x, y = _curve(view, intended=kind == "intended")
            if len(x):
                source = ColumnDataSource({"x": x, "y": y, "name": [f"{label}, from the {kind} send"] * len(x), "p": 100 * (1 - 1 / x)})
                text = label if kind == "intended" else f"{label}, service only"
                lines.append(found.line("x", "y", source=source, color=colour, line_dash=dash, line_width=2, legend_label=text))
    if not lines:
        return explain("No request of a valid point received a first token.")
    hover(found, lines, [("series", "@name"), ("percentile", "@p{0.00}"), ("ms", "@y{0,0.0}")])
    legend(found)
    return found


def _curve(view: View, *, intended: bool) -> tuple[Floats, Floats]:
    times = np.sort(view.seconds("ttft" if intended else "ttft_service")) * 1000
    if not len(times):
        return np.empty(0), np.empty(0)
    # The curve ends at the last percentile that has a value beyond it.
    x = np.geomspace(1.0, max(2.0, float(len(times))), CURVE_POINTS)
    return x, times[np.minimum(len(times) - 1, ((1 - 1 / x) * len(times)).astype(int))]


def itl_heat(view: View) -> UIElement:
    """Draw all gaps between tokens by their end; a stall is a column, a slow mode a row."""
    gaps = [(end, max(1e-5, (end - begin) / count) * 1000, count) for record in view.traffic for begin, end, count in record.gaps()]
    if not gaps:
        return explain("No request of this point received a second token, so there are no gaps.")
    ends, values, weights = np.array(gaps).T
    low, high = np.log10(values.min()) - 0.05, np.log10(values.max()) + 0.05
    bounds = (0, ends.max()), (low, high)
    counts, columns, rows = np.histogram2d(ends, np.log10(values), bins=(HEAT_COLUMNS, HEAT_ROWS), range=bounds, weights=weights)
    found = chart("Inter-token latency over time", "s from the point's start", "ms per token", y_axis_type="log")
    across, up = np.nonzero(counts)
    mapper = LogColorMapper(palette=HEAT_PALETTE, low=1.0, high=max(10.0, float(counts.max())))
    sides = {"left": columns[across], "right": columns[across + 1], "bottom": 10 ** rows[up], "top": 10 ** rows[up + 1]}
    source = ColumnDataSource(sides | {"count": counts[across, up]})
    colour = {"field": "count", "transform": mapper}
    cells = found.quad(**{side: side for side in sides}, source=source, line_color=None, fill_color=colour)
    hover(found, [cells], [("tokens", "@count{0,0}"), ("ms", "@bottom{0.00} to @top{0.00}"), ("s", "@left{0.0} to @right{0.0}")])
    found.add_layout(_token_bar(mapper), "right")
    return found


def _token_bar(mapper: LogColorMapper) -> ColorBar:
    """Return the legend of the colours, which are logarithms of token counts."""
    colours = {"major_label_text_color": MIDDLE, "title_text_color": MIDDLE, "background_fill_alpha": 0}
    return ColorBar(color_mapper=mapper, title="tokens", ticker=log_ticker(), formatter=plain_numbers(), width=10, **colours)
