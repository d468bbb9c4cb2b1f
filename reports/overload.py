"""The overload study as a page: each workload's goodput and fairness by load and contender."""

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

# The key of each contender's figures in a row of the study; None is the row itself. LateGate comes
# first.
CONTENDERS = {
    None: "LateGate",
    "fixed": "best fixed limit, in hindsight",
    "thinning": "best random thinning, in hindsight",
    "flags": "vLLM's flags, in hindsight",
    "gradient2": "Gradient2",
    "none": "no control",
}
HEAD = """<h1>Overload</h1><p class="soft">Left: requests per second that met their SLO, by the offered load as a multiple of the
capacity. Right: the share of requests that met their SLO in the worst-served class of lengths, divided by that of the best-served class.
A contender with high goodput at a low ratio serves only short prompts. Contenders marked "in hindsight" are tuned for each point;
LateGate is not tuned.</p>"""


def read_study(path: Path) -> list[dict[str, Any]]:
    """Return the rows of `python -m benchmarks overload --out`. Raises UnreadableRun."""
    try:
        rows = json.loads(path.read_bytes())["overload"]
        for row in rows:
            row["workload"], row["load"], [(row[key] if key else row)["goodput"] for key in CONTENDERS]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableRun(f"{path}: not an overload study ({type(error).__name__}: {error})") from None
    if not rows:
        raise UnreadableRun(f"{path}: the study has no overload rows")
    return list(rows)


def build(path: Path, out: Path) -> int:
    """Write the page; returns its size in bytes."""
    document = Document()
    for root in roots(read_study(path)):
        document.add_root(root)
    text = file_html(document, INLINE, "Overload", template=template(), template_variables={"title": "Overload"})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    return len(text.encode())


def roots(rows: list[dict[str, Any]]) -> list[UIElement]:
    """Return the page from top to bottom: a row of two charts for each workload."""
    names = list(dict.fromkeys(row["workload"] for row in rows))
    pairs = []
    for name in names:
        of = [row for row in rows if row["workload"] == name]
        kept = _lines(f"{name}: goodput", "requests/s that met the SLO", of, "goodput")
        even = _lines(f"{name}: fairness between length classes", "worst class / best class", of, "class_ratio")
        pairs.append(Row(children=[kept, even], sizing_mode="stretch_width", spacing=24))
    head = Div(text=HEAD, sizing_mode="stretch_width", stylesheets=[STYLE])
    return [head, Column(children=pairs, sizing_mode="stretch_width", spacing=18)]


def _lines(title: str, y: str, rows: list[dict[str, Any]], figure: str) -> UIElement:
    found = chart(title, "offered load, multiple of the capacity", y, x_axis_type="log")
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
    hover(found, points, [("admission", "@name"), ("offered", "@x times the capacity"), (y, "@y{0.00}")])
    legend(found)
    return found
