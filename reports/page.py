"""The page's layout, for file and server: provenance, validity, verdict, tiles, charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bokeh.document import Document
from bokeh.models import Column, UIElement
from jinja2 import Environment, FileSystemLoader, Template

from benchmarks.analysis.report import View
from reports.blocks.files import files
from reports.blocks.head import head
from reports.blocks.table import table
from reports.blocks.verdicts import tiles, verdicts
from reports.charts.comparison import forests
from reports.charts.cost import cost, energy
from reports.charts.curves import latency, no_curve, throughput, throughput_vs_latency
from reports.charts.distributions import itl_heat, spectrum
from reports.charts.goodput import goodput, outcomes
from reports.charts.lengths import throughput_vs_prompt, ttft_vs_prompt
from reports.charts.memory import kv_vs_concurrency, vram_usage
from reports.charts.prediction import predicted_vs_measured
from reports.charts.timelines import engine_timelines, stages
from reports.lazy_panels import choice, tabs
from reports.page_data import CONCURRENCY, RATE, Content
from reports.theme import GRID_STYLE, INPUT_STYLE, NARROW, NOT_VALID

TAB_STYLE = """
    :host { --tab-line: var(--line); } .bk-header { border-bottom: 1px solid var(--line) !important; }
    .bk-headers-wrapper { flex-wrap: wrap !important; }
    :host { min-width: 0; } .bk-tab { color: var(--soft) !important; background: transparent !important; border: none !important; }
    .bk-tab { padding: 8px 14px !important; font-size: 15px; }
    .bk-tab:hover { color: var(--ink) !important; }
    /* Bokeh hides the other tabs and lets the tallest of them make the page. */
    [style*="visibility: hidden"] { display: none !important; }
    .bk-tab.bk-active { color: var(--ink) !important; border-bottom: 3px solid var(--accent) !important; font-weight: 600; }
    """


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
    return [head(content), verdicts(content), tiles(content), tabs(pages, opened, stylesheets=[TAB_STYLE])]


def _pages(content: Content) -> dict[str, UIElement]:
    """Return each tab with its charts, or with the reason why it has none."""
    return {
        "Saturation": _stack(_curves(content)),
        "Distributions": _stack([spectrum(content), outcomes(content)]),
        "Timelines": _stack([stages(content), _moments(content)]),
        "Prompt lengths": _grid([ttft_vs_prompt(content), throughput_vs_prompt(content)]),
        "Memory": _stack([vram_usage(content), kv_vs_concurrency(content)]),
        "Cost": _grid([*cost(content), *energy(content)]),
        "Prediction": _stack([predicted_vs_measured(content)]),
        "Comparison": _stack(forests(content)),
        "Table": table(content),
        "Data": files(content),
    }


def _curves(content: Content) -> list[UIElement]:
    """Return the charts of each kind of load that was swept."""
    charts = []
    for axis in (CONCURRENCY, RATE):
        if content.curves(axis):
            charts.append(throughput(content, axis))
            charts += [throughput_vs_latency(content)] if axis is CONCURRENCY else []
            charts += [latency(content, axis, name) for name in ("ttft", "tpot", "e2e")]
    return [*([] if charts else [no_curve(CONCURRENCY)]), _grid([*charts, goodput(content)])]


def _grid(children: Sequence[UIElement]) -> UIElement:
    return Column(children=list(children), sizing_mode="stretch_width", stylesheets=[GRID_STYLE])


def _stack(children: Sequence[UIElement]) -> UIElement:
    return Column(children=list(children), sizing_mode="stretch_width", spacing=18, stylesheets=[NARROW])


def _moments(content: Content) -> UIElement:
    """Show one point at a time, chosen from each series' knee and its lowest and highest load."""
    chosen: dict[str, View] = {}
    for series in content.every_series:
        views = series.views
        telling = [views[-1], views[0]] if series.axis is CONCURRENCY else views[::-1]
        if series.knee is not None and series.working is not None:
            telling.insert(0, series.working)
        chosen |= {_name(series.label, view): view for view in telling}
    charts = {name: _stack([*engine_timelines(view), itl_heat(view)]) for name, view in chosen.items()}
    return _stack(choice("Point", charts, stylesheets=[INPUT_STYLE], sizing_mode="stretch_width", max_width=420))


def _name(label: str, view: View) -> str:
    repeat = f", repeat {view.point.repeat + 1}" if view.point.repeat else ""
    return f"{label}, {view.point.load}{repeat}{'' if view.valid else f' ({NOT_VALID})'}"
