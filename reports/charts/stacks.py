"""Horizontal bars of parts, one bar for each point; bars of points that are not valid are hollow."""

from collections.abc import Mapping, Sequence

import numpy as np
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from reports.charts.figures import BAR_SHARE, hover
from reports.theme import NOT_VALID


def stack(
    found: figure,
    parts: Mapping[str, tuple[str, Mapping[str, float]]],
    more: Mapping[str, Mapping[str, float]],
    tips: Sequence[tuple[str, str]],
) -> None:
    """Draw parts side by side in each row of a figure.

    `parts` has the colour and each row's length of every part, in their order; `more` are further
    columns of the tooltip, by row. A tooltip's own columns are `part` and `length`.
    """
    left = dict.fromkeys(found.y_range.factors, 0.0)
    for part, (colour, lengths) in parts.items():
        for hollow in (False, True):
            rows = [row for row in left if lengths.get(row) and row.endswith(f"({NOT_VALID})") is hollow]
            if rows:
                begin, length = np.array([left[row] for row in rows]), np.array([lengths[row] for row in rows])
                columns = {"y": rows, "left": begin, "right": begin + length, "length": length, "part": [part] * len(rows)}
                source = ColumnDataSource(columns | {name: [values[row] for row in rows] for name, values in more.items()})
                drawn = found.hbar(
                    y="y", left="left", right="right", height=BAR_SHARE, source=source, legend_label=part, line_color=colour,
                    fill_color=None if hollow else colour,
                )  # fmt: skip
                hover(found, [drawn], tips)
        left = {row: start + lengths.get(row, 0.0) for row, start in left.items()}
