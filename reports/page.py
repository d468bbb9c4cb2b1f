"""The page's layout, for file and server: provenance, validity, verdict, tiles, charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bokeh.document import Document
from bokeh.models import Column, Row, UIElement
from jinja2 import Environment, FileSystemLoader, Template

from benchmarks.analysis.knee import Knee
from benchmarks.analysis.report import View
from reports import html_blocks
from reports.charts.comparison import forest
from reports.charts.curves import NO_SWEEP, latency_vs_concurrency, throughput_vs_concurrency, throughput_vs_latency
from reports.charts.distributions import itl_heat, spectrum
from reports.charts.goodput import goodput, outcomes
from reports.charts.lengths import throughput_vs_prompt, ttft_vs_prompt
from reports.charts.memory import kv_vs_concurrency, vram_usage
from reports.charts.prediction import predicted_vs_measured
from reports.charts.timelines import engine_timelines, stages
from reports.lazy_panels import choice, tabs
from reports.page_data import Content
from reports.theme import explain

TAB_STYLE = """
    :host { --tab-line: var(--line); } .bk-header { border-bottom: 1px solid var(--line) !important; }
    .bk-tab { color: var(--soft) !important; background: transparent !important; border: none !important; }
    .bk-tab { padding: 8px 14px !important; font-size: 15px; }
    .bk-tab:hover { color: var(--ink) !important; }
    /* Bokeh hides the other tabs and lets the tallest of them make the page. */
    [style*="visibility: hidden"] { display: none !important; }
    .bk-tab.bk-active { color: var(--ink) !important; border-bottom: 3px solid var(--accent) !important; font-weight: 600; }
    """
INPUT_STYLE = ":host, select, input { color: var(--ink) !important; background-color: var(--paper) !important; }"


def add_to(document: Document, content: Content, title: str = "llmserve") -> None:
    """Put the page's roots into a document, with the template that frames them."""
    document.title = title
    document.template = template()
    document.template_variables["title"] = title
    for root in roots(content):
        document.add_root(root)


def template() -> Template:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    return environment.get_template("page.html")


def roots(content: Content, more: Mapping[str, UIElement] | None = None, opened: int = 0) -> list[UIElement]:
    """Return the page's roots from top to bottom.

    The last root is the tabs: the page's, then `more`; `opened` is the number of the tab shown.
    """
    pages = {**_pages(content), **(more or {})}
    return [
        html_blocks.head(content),
        html_blocks.verdicts(content),
        html_blocks.tiles(content),
        tabs(pages, opened, stylesheets=[TAB_STYLE]),
    ]


def _pages(content: Content) -> dict[str, UIElement]:
    """Return each tab with its charts, or with the reason why it has none."""
    return {
        "Saturation": _grid(_curves(content)),
        "Distributions": _stack([spectrum(content), outcomes(content)]),
        "Timelines": _stack([stages(content), _moments(content)]),
        "Prompt lengths": _grid([ttft_vs_prompt(content), throughput_vs_prompt(content)]),
        "Memory": _stack([vram_usage(content), kv_vs_concurrency(content)]),
        "Prediction": _stack([predicted_vs_measured(content)]),
        "Comparison": _stack([forest(content)]),
        "Table": html_blocks.table(content),
        "Data": html_blocks.files(content),
    }


def _curves(content: Content) -> list[UIElement]:
    if not content.sweeps:
        return [explain(NO_SWEEP), goodput(content)]
    latencies = [latency_vs_concurrency(content, name) for name in ("ttft", "tpot", "e2e")]
    return [throughput_vs_concurrency(content), throughput_vs_latency(content), *latencies, goodput(content)]


def _grid(children: Sequence[UIElement]) -> UIElement:
    """Arrange charts in rows of two; narrow windows wrap."""
    rows = [
        Row(children=list(children[index : index + 2]), sizing_mode="stretch_width", spacing=24) for index in range(0, len(children), 2)
    ]
    return _stack(rows)


def _stack(children: Sequence[UIElement]) -> UIElement:
    return Column(children=list(children), sizing_mode="stretch_width", spacing=18)


def _moments(content: Content) -> UIElement:
    """Show one point at a time, chosen from each series' knee and its lowest and highest load."""
    chosen: dict[str, View] = {}
    for series in content.every_series:
        views, verdict = series.sweep.views, series.sweep.saturation
        telling = [views[-1], views[0]]
        if verdict is not None and isinstance(knee := verdict.knee, Knee):
            telling.insert(0, min(views, key=lambda view: abs((view.point.concurrency or 0) - knee.concurrency)))
        chosen |= {f"{series.label}, {view.point.load}": view for view in telling}
    for run in content.runs:
        chosen |= {
            f"{run.name}, {view.point.target}, {view.point.load}, point {view.point.number}": view for view in run.analysis.open_loops
        }
    charts = {name: _stack([*engine_timelines(view), itl_heat(view)]) for name, view in chosen.items()}
    return _stack(choice("Point", charts, stylesheets=[INPUT_STYLE], width=420))
