"""The overload study as a page: for each workload who keeps how much at which load, and at whose expense."""

import json
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.models import Column, ColumnDataSource, Div, Row, UIElement
from bokeh.resources import INLINE

from benchmarks.recording.storage import UnreadableRun
from reports.page import template
from reports.theme import PALETTE, REFERENCE, STYLE, chart, hover, legend, plain_numbers

# Where a row of the study keeps each contender's figures, None for the row itself; LateGate first.
CONTENDERS = {
    None: "LateGate",
    "fixed": "best fixed limit, in hindsight",
    "thinning": "best random thinning, in hindsight",
    "flags": "vLLM's flags, in hindsight",
    "gradient2": "Gradient2",
    "none": "no control",
}
HEAD = """<h1>Overload</h1><p class="soft">Requests a second that kept their promise, by how many times the capacity was offered; and
the share of requests kept in the worst-served class of lengths, by that of the best-served. A contender that keeps many requests at a low
ratio serves short prompts only. Several are tuned for each point in hindsight; LateGate is tuned for none.</p>"""


def read_study(path: Path) -> list[dict[str, Any]]:
    """The rows of `python -m benchmarks overload --out`. Raises UnreadableRun."""
    try:
        rows = json.loads(path.read_bytes())["overload"]
        for row in rows:
            row["workload"], row["load"], [(row[key] if key else row)["goodput"] for key in CONTENDERS]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableRun(f"{path}: no study of overload ({type(error).__name__}: {error})") from None
    if not rows:
        raise UnreadableRun(f"{path}: a study without an overload in it")
    return list(rows)


def build(path: Path, out: Path) -> int:
    """Write the page; returns its bytes."""
    document = Document()
    for root in roots(read_study(path)):
        document.add_root(root)
    text = file_html(document, INLINE, "Overload", template=template(), template_variables={"title": "Overload"})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    return len(text.encode())


def roots(rows: list[dict[str, Any]]) -> list[UIElement]:
    """From top to bottom: a row of two charts for each workload."""
    names = list(dict.fromkeys(row["workload"] for row in rows))
    pairs = []
    for name in names:
        of = [row for row in rows if row["workload"] == name]
        kept = _lines(f"{name}: goodput", "requests/s kept", of, "goodput")
        even = _lines(f"{name}: how evenly lengths are served", "worst class by best class", of, "class_ratio")
        pairs.append(Row(children=[kept, even], sizing_mode="stretch_width", spacing=24))
    head = Div(text=HEAD, sizing_mode="stretch_width", stylesheets=[STYLE])
    return [head, Column(children=pairs, sizing_mode="stretch_width", spacing=18)]


def _lines(title: str, y: str, rows: list[dict[str, Any]], figure: str) -> UIElement:
    found = chart(title, "offered, times the capacity", y, x_axis_type="log")
    plain_numbers(found.xaxis[0])
    found.y_range.start = 0
    points = []
    for index, (key, label) in enumerate(CONTENDERS.items()):
        colour = REFERENCE if key == "none" else PALETTE[index]
        shown = [(row["load"], (row[key] if key else row)[figure]) for row in sorted(rows, key=lambda row: row["load"])]
        source = ColumnDataSource({"x": [x for x, _ in shown], "y": [value for _, value in shown], "name": [label] * len(shown)})
        width = 2 if key else 4
        found.line("x", "y", source=source, color=colour, line_width=width, legend_label=label)
        points.append(found.scatter("x", "y", source=source, color=colour, size=6 + width, legend_label=label))
    hover(found, points, [("admission", "@name"), ("offered", "@x times"), (y, "@y{0.00}")])
    legend(found)
    return found
