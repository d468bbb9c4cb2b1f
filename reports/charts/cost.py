"""Energy and cost of the output tokens, by load."""

from collections.abc import Callable

import numpy as np
from bokeh.models import GlyphRenderer, UIElement

from benchmarks.analysis.report import View
from benchmarks.analysis.table import cost_per_million, joules_per_token
from reports.charts.axes import legend
from reports.charts.curves import TIPS, VALID, load_chart
from reports.charts.figures import facts, hollow_key, hover, line_through, marks
from reports.page_data import CONCURRENCY, RATE, Axis, Content, Series
from reports.theme import explain

NO_ENERGY = "No sweep has a measured energy: NVML reported none, or the engine ran on another machine."
NO_PRICE = "No price is known. Build the page with <code>--price-per-hour</code>, the price of the server."


def energy(content: Content) -> list[UIElement]:
    """Draw the GPUs' energy for an output token by load."""
    return _charts(content, "Energy", "J per output token", lambda _: joules_per_token, NO_ENERGY)


def cost(content: Content) -> list[UIElement]:
    """Draw the cost of a million output tokens by load."""

    def value(series: Series) -> Callable[[View], float | None]:
        price = series.run.analysis.recording.run.price_per_hour
        return lambda view: cost_per_million(view, price)

    return _charts(content, "Cost", "cost per 1M output tokens", value, NO_PRICE)


def _charts(
    content: Content, title: str, unit: str, value: Callable[[Series], Callable[[View], float | None]], missing: str
) -> list[UIElement]:
    charts = [_chart(content.curves(axis), f"{title} by {axis.name}", unit, value, axis) for axis in (CONCURRENCY, RATE)]
    return [chart for chart in charts if chart is not None] or [explain(missing)]


def _chart(
    curves: list[Series], title: str, unit: str, value: Callable[[Series], Callable[[View], float | None]], axis: Axis
) -> UIElement | None:
    known = [(series, views) for series in curves if (views := [view for view in series.views if value(series)(view) is not None])]
    if not known:
        return None
    found = load_chart(title, unit, axis, [series for series, _ in known])
    points: list[GlyphRenderer] = []
    for series, views in known:
        places = {"x": np.array([axis.at(view) for view in views]), "y": np.array([value(series)(view) for view in views])}
        columns = places | facts(series.label, views)
        line_through(found, columns, views, color=series.colour, line_width=2, legend_label=series.label)
        points += marks(found, columns, views, series.colour, series.label, size=8)
    hollow_key(found, [view for _, views in known for view in views])
    hover(found, points, [*TIPS, (unit, "@y{0,0.000}"), VALID])
    legend(found)
    return found
