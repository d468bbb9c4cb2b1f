"""`python -m reports overload`: the page of a league, which `benchmarks overload --league` measured."""

import html
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.models import Column, Div, UIElement

from benchmarks.recording.storage import UnreadableRun
from reports.charts.league import KINDS, MAX_LATE, MIN_CLASS_RATIO, OURS, kind, mean, standings
from reports.lazy_panels import tabs
from reports.page import TAB_STYLE
from reports.theme import GRID_STYLE, NARROW, block

TITLE = "Admission policies under overload"
# From this share of the best goodput on, a policy is as good as the best.
CLOSE = 0.99
CARDS = """
    .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 12px; }
    .cards dl { margin: 8px 0 0; font-size: 14px; }
    """
League = Mapping[str, Any]
Row = Mapping[str, Any]


def read(path: Path) -> League:
    """Read the results of a league. Raises UnreadableRun."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        raise UnreadableRun(f"{path}: not JSON") from None
    if not isinstance(found, dict) or not found.get("rows") or "contenders" not in found:
        raise UnreadableRun(f"{path}: not the results of `benchmarks overload --league`")
    return found


def page(league: League) -> Document:
    """Return the page."""
    document = Document()
    document.title = TITLE
    pages = {workload: _workload(league, rows) for workload, rows in _by(league["rows"], "workload")}
    pages |= {"Policies": _policies(league), "Signals": _signals(league)}
    for root in (_head(league), tabs(pages, stylesheets=[TAB_STYLE])):
        document.add_root(root)
    return document


def _by(rows: Iterable[Row], name: str) -> list[tuple[Any, list[Row]]]:
    return [(value, list(group)) for value, group in itertools.groupby(rows, key=lambda row: row[name])]


def _relative(league: League, rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Return the rows with their goodput, relative to that of the reference at the same load."""
    found = []
    for _, same in _by(rows, "load"):
        best = max((mean(row) for row in same if row["contender"] == league["reference"]), default=0.0)
        found += [(row, mean(row) / best if best else 0.0) for row in same]
    return found


def _head(league: League) -> Div:
    words = _verdict([rows for _, workload in _by(league["rows"], "workload") for _, rows in _by(workload, "load")])
    ours = [row for row in league["rows"] if row["contender"] == OURS]
    parts = [f"<h1>{TITLE}</h1>", f'<p class="soft">Simulated in virtual time; seeds {", ".join(map(str, league["seeds"]))}.</p>']
    parts.append(f'<div class="verdict">{html.escape(words)}</div>')
    pairs = [pair for _, rows in _by(league["rows"], "workload") for pair in _relative(league, rows)]
    relative = [value for row, value in pairs if row["contender"] == OURS]
    if ours:
        tiles = {
            "lowest goodput, of the best fixed limit's": f"{min(relative):.2f}",
            "median": f"{statistics.median(relative):.2f}",
            "most late, of the admitted requests": f"{max(row['late'] for row in ours):.2%}",
            "lowest class ratio": f"{min(row['class_ratio'] for row in ours):.2f}",
        }
        cells = "".join(f'<div class="tile"><b>{value}</b><span>{OURS}: {name}</span></div>' for name, value in tiles.items())
        parts.append(f'<div class="tiles">{cells}</div>')
    return block("".join(parts))


def _verdict(loads: Sequence[Sequence[Row]]) -> str:
    """Say how often our policy is the best of those that meet the SLO and serve all lengths."""
    first = close = 0
    for rows in loads:
        good = {row["contender"]: mean(row) for row in rows if kind(row) == next(iter(KINDS))}
        if OURS in good:
            first += good[OURS] == max(good.values())
            close += CLOSE * max(good.values()) <= good[OURS] < max(good.values())
    limits = f"keep at most {MAX_LATE:.0%} late and a class ratio of at least {MIN_CLASS_RATIO}"
    words = f"At {first} of {len(loads)} loads {OURS} has the highest goodput of the policies that {limits}"
    return f"{words}; at {close} others it is within {1 - CLOSE:.0%} of it."


def _workload(league: League, rows: Sequence[Row]) -> UIElement:
    """Return the charts of a workload, one for each load, its table, and its requests without any load."""
    workload = next(one for one in league["workloads"] if one["name"] == rows[0]["workload"])
    alone = workload["unloaded"]
    words = (
        f"Capacity {workload['capacity']:.1f} requests/s; SLO: TTFT {workload['ttft']:g} s, TPOT {workload['tpot'] * 1000:g} ms. "
        f"Alone in the engine a request has a TTFT of {alone['ttft_p50']:.2g} s (p50) and {alone['ttft_p99']:.2g} s (p99), "
        f"and a TPOT of {alone['tpot_p50'] * 1000:.2g} ms."
    )
    titles = [(f"{load:g} times the capacity: {same[0]['rate']:.1f} requests/s", same) for load, same in _by(rows, "load")]
    charts = [standings(title, same, league["reference"]) for title, same in titles]
    grid = Column(children=charts, sizing_mode="stretch_width", stylesheets=[GRID_STYLE])
    parts = [block(f'<p class="note">{html.escape(words)}</p>'), grid, _table(league, rows)]
    return Column(children=parts, sizing_mode="stretch_width", spacing=12, stylesheets=[NARROW])


def _table(league: League, rows: Sequence[Row]) -> Div:
    """Return a table of all policies and loads."""
    loads = list(dict.fromkeys(row["load"] for row in rows))
    of = {(row["contender"], row["load"]): (row, value) for row, value in _relative(league, rows)}
    order = sorted({row["contender"] for row in rows}, key=lambda name: -statistics.fmean(of[name, load][1] for load in loads))
    lines = []
    for name in order:
        cells = []
        for load in loads:
            row, value = of[name, load]
            late = f'<span class="{"bad" if row["late"] > MAX_LATE else "soft"}">{row["late"]:.1%}</span>'
            fair = f'<span class="{"bad" if row["class_ratio"] < MIN_CLASS_RATIO else "soft"}">{row["class_ratio"]:.2f}</span>'
            cells += [f"<b>{value:.2f}</b>", late, fair]
        lines.append([f"<b>{name}</b>" if name == OURS else name, *cells])
    heads = [name for load in loads for name in (f"{load:g} x", "late", "class ratio")]
    return block(
        _rows(["policy", *heads], lines)
        + '<p class="note">For each load: the goodput, relative to that of the best fixed limit; the late share of the admitted requests; '
        + "and the class ratio, which divides how often the worst-served prompt length is served by how often the best-served is.</p>"
    )


def _rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{html.escape(name)}</th>" for name in head)}</tr>{body}</table></div>'


def _policies(league: League) -> Div:
    """Return what the authors of each policy report, beside what it reaches here."""
    relative = [pair for _, rows in _by(league["rows"], "workload") for pair in _relative(league, rows)]
    cards = []
    for one in league["contenders"]:
        own = [(row, value) for row, value in relative if row["contender"] == one["name"]]
        source = html.escape(one["source"])
        where = f'<a href="{html.escape(one["url"])}">{source}</a>' if one["url"] else source
        values = [value for _, value in own]
        here = f"{min(values):.2f} to {max(values):.2f} of the best fixed limit's goodput, up to {max(row['late'] for row, _ in own):.1%} "
        here += f"late, class ratio from {min(row['class_ratio'] for row, _ in own):.2f}"
        facts = f"<dt>the authors</dt><dd>{html.escape(one['headline'])}</dd><dt>here</dt><dd>{here}</dd>"
        cards.append(f'<div class="card tile"><b>{html.escape(one["name"])}</b><span>{where}</span><dl>{facts}</dl></div>')
    return block(f'<style>{CARDS}</style><div class="cards">{"".join(cards)}</div>')


def _signals(league: League) -> Div:
    """Return the lowest, median and highest value of what each policy decides by, for each workload."""
    workloads = list(dict.fromkeys(row["workload"] for row in league["rows"]))
    lines = []
    for one in league["contenders"]:
        seen = [(row["workload"], row["signals"]) for row in league["rows"] if row["contender"] == one["name"]]
        for name in dict.fromkeys(name for _, signals in seen for name in signals):
            ranges = [_range([signals[name] for workload, signals in seen if workload == shown and name in signals]) for shown in workloads]
            lines.append([html.escape(one["name"]), html.escape(name), *ranges])
    note = '<p class="note">Lowest, median and highest value after a step, over all loads and seeds.</p>'
    return block(note + _rows(["policy", "signal", *workloads], lines))


def _range(values: Sequence[Sequence[float]]) -> str:
    if not values:
        return "-"
    low, middle, high = zip(*values, strict=True)
    return " / ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (min(low), statistics.median(middle), max(high)))
