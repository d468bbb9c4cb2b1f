"""Figures and the marks on them. Every chart is made here, so that all charts look alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FactorRange, GlyphRenderer, HoverTool, LabelSet, Model, TeeHead, Whisker
from bokeh.plotting import figure

from benchmarks.analysis.report import View
from reports.charts.axes import set_ticks
from reports.theme import GRID, INK, NOT_VALID, REFERENCE

HEIGHT = 260
# Pixels of a row of bars, and the share of it that the bar takes.
ROW_HEIGHT, BAR_SHARE = 32, 0.35
LABEL_OFFSET = 6


def chart(title: str, x: str, y: str, *, height: int = HEIGHT, **options: Any) -> figure:
    """Return an empty figure; `x` and `y` are the axis labels, with units.

    `height` is that of the plot without its axes and legend, in pixels.
    """
    found = figure(
        title=title,
        x_axis_label=x,
        y_axis_label=y,
        frame_height=height,
        min_width=200,
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
    found.title.text_font_size = "14px"
    found.title.text_color = INK
    for axis in found.axis:
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = GRID
        axis.axis_label_text_font_style = "normal"
    found.grid.grid_line_color = GRID
    named = isinstance(options.get("y_range"), FactorRange)
    set_ticks(found, x_type=options.get("x_axis_type", "linear"), y_type="names" if named else options.get("y_axis_type", "linear"))
    return found


def bars(title: str, x: str, labels: Sequence[str], **options: Any) -> figure:
    """Return an empty figure for horizontal bars, one row for each label, from top to bottom.

    A label is above its bar, because beside the plot it would leave a narrow page no room.
    """
    # The padding is room for the label of the first row.
    rows = FactorRange(factors=list(labels)[::-1], range_padding=0.3, range_padding_units="absolute")
    found = chart(title, x, "", height=ROW_HEIGHT * len(labels) + 20, y_range=rows, **options)
    found.yaxis.visible = found.ygrid.visible = False
    # Otherwise Bokeh aligns the plot with those above and below it, which have labels beside them.
    found.frame_align = False
    source = ColumnDataSource({"y": list(labels)})
    names = LabelSet(x=2, x_units="screen", y="y", y_offset=LABEL_OFFSET, text="y", source=source, text_font_size="11px", tags=["ink"])
    found.add_layout(names)
    return found


def facts(label: str, views: Sequence[View]) -> dict[str, list[str]]:
    """Return the columns that a tooltip shows for each point."""
    served = [view.unserved and f", but {view.state}: {view.unserved}" for view in views]
    reasons = ["no: " + "; ".join(view.faults) if view.faults else f"yes{state or ''}" for view, state in zip(views, served, strict=True)]
    return {"name": [label] * len(views), "load": [view.point.load for view in views], "valid": reasons}


def parts(columns: Mapping[str, Any], views: Sequence[View]) -> list[tuple[bool, ColumnDataSource]]:
    """Return the valid rows, then the others, each as a source; without the empty ones."""
    valid = np.array([view.valid for view in views], dtype=bool)
    found = []
    for kind, chosen in ((True, valid), (False, ~valid)):
        if chosen.any():
            found.append((kind, ColumnDataSource({name: np.asarray(values)[chosen] for name, values in columns.items()})))
    return found


def marks(found: figure, columns: Mapping[str, Any], views: Sequence[View], colour: str, label: str, **style: Any) -> list[GlyphRenderer]:
    """Draw one mark for each point: those that are not valid are hollow."""
    return [
        found.scatter("x", "y", source=source, color=colour, fill_color=colour if valid else None, legend_label=label, **style)
        for valid, source in parts(columns, views)
    ]


def line_through(found: figure, columns: Mapping[str, Any], views: Sequence[View], **style: Any) -> GlyphRenderer:
    """Draw a line through the mean of each load's valid points; single points are repeats."""
    keys = np.array([_load(view) for view in views if view.valid])
    valid = np.array([view.valid for view in views], dtype=bool)
    levels = np.unique(keys)
    x, y = ([np.mean(np.asarray(columns[name], dtype=float)[valid][keys == level]) for level in levels] for name in ("x", "y"))
    return found.line(x, y, **style)


def whiskers(found: figure, columns: Mapping[str, Any], views: Sequence[View], colour: str) -> None:
    """Draw the intervals of the valid points, from `low` to `high`."""
    for valid, source in parts(columns, views):
        if valid:
            ends = {end: TeeHead(size=8, line_color=colour) for end in ("lower_head", "upper_head")}
            found.add_layout(Whisker(base="x", lower="low", upper="high", source=source, line_color=colour, **ends))


def _load(view: View) -> float:
    return view.point.concurrency or view.point.rate or 0.0


def hollow_key(found: figure, views: Sequence[View]) -> None:
    """Explain hollow marks in the legend, if there are any."""
    if not all(view.valid for view in views):
        found.scatter([np.nan], [np.nan], color=REFERENCE, fill_color=None, size=8, legend_label=NOT_VALID)


def hover(found: figure, renderers: Sequence[Model], tips: Sequence[tuple[str, str]]) -> None:
    found.add_tools(HoverTool(renderers=list(renderers), tooltips=list(tips)))
