"""Serves the page with Bokeh: choose runs, compare them, follow a live server.

Its event loop is its own, and it reads only files, apart from the followed server.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.models import Column, CustomJS, MultiChoice, UIElement
from bokeh.server.server import Server

from benchmarks.recording.storage import UnreadableRun, find
from reports.blocks.head import warning
from reports.lazy_panels import tabs
from reports.live.panel import Live
from reports.page import TAB_STYLE, roots, template
from reports.page_data import load
from reports.theme import INPUT_STYLE, NARROW

# Runs are compared in the order in which they are chosen.
PICK = "Runs (the Comparison tab compares each further run with the first)"
# The number of a tab that is limited to the last one.
LAST = 10**6
# A choice opens a new page, so that it has an address to link to.
REOPEN = """
const chosen = new URLSearchParams(pick.value.map((name) => ["run", name]))
chosen.set("tab", tabs.active)
window.location.search = chosen.toString()
"""


@attrs.frozen
class Site:
    """What the server shows: runs in these files and folders, and these running servers.

    Attributes:
        live: URLs that a page follows as soon as it is opened.
        price_per_hour: Replaces the price that a run recorded.
        api_key: The key for the servers of `live`.
    """

    paths: Sequence[Path]
    live: Sequence[str] = ()
    price_per_hour: float | None = None
    api_key: str | None = attrs.field(default=None, repr=False)


def open_page(document: Document, site: Site) -> None:
    """Build one reader's page: the runs that its address names, or the newest run."""
    # The files are looked up for every reader, so that a reload shows new runs.
    files = {name: file for path in site.paths for name, file in _files(path).items()}
    names = _asked(document, "run")
    newest = [max(files, key=lambda name: files[name].stat().st_mtime)] if files else []
    known = [name for name in names if name in files] or newest
    followed = next(iter(_asked(document, "live")), "")
    tab = next(iter(_asked(document, "tab")), "")
    opened = int(tab) if tab.isdigit() else LAST if followed or site.live else 0
    live = {"Live": Live(document, followed, site.live, site.api_key).panel()}
    *above, pages = _content(site, [files[name] for name in known], live, opened)
    above += [warning(f"run not found: {name}") for name in names if name not in files]
    pick = MultiChoice(title=PICK, options=list(files), value=known, stylesheets=[INPUT_STYLE], sizing_mode="stretch_width")
    pick.js_on_change("value", CustomJS(args={"pick": pick, "tabs": pages}, code=REOPEN))
    document.title = "llmserve reports"
    document.template = template()
    document.template_variables["title"] = document.title
    # Leave room for the button that switches between light and dark.
    parts = [*([pick] if files else []), *above, pages]
    document.add_root(Column(children=parts, sizing_mode="stretch_width", margin=(28, 0, 0, 0), stylesheets=[NARROW]))


def _asked(document: Document, name: str) -> list[str]:
    """Return the values of a parameter in the page's address."""
    context = document.session_context
    arguments = context.request.arguments if context is not None and context.request is not None else {}
    return [value.decode(errors="replace") for value in arguments.get(name, [])]


def _content(site: Site, files: Sequence[Path], more: Mapping[str, UIElement], opened: int) -> list[UIElement]:
    if not files:
        return [tabs(more, stylesheets=[TAB_STYLE])]
    try:
        return roots(load(files, None, site.price_per_hour), more, opened)
    except UnreadableRun as error:
        return [warning(str(error)), tabs(more, stylesheets=[TAB_STYLE])]


def _files(path: Path) -> dict[str, Path]:
    """Return files by name; files in a folder have the folder's name in front."""
    return {str(Path(path.name, file.relative_to(path))): file for file in find(path)}


def make_server(site: Site, host: str, port: int) -> Server:
    """Make a server that is not started yet.

    Raises UnreadableRun immediately for unreadable runs, not at the first reader's visit.
    """
    if site.paths:
        load(site.paths)

    application = Application(FunctionHandler(lambda document: open_page(document, site)))
    origins = [f"{name}:{port}" for name in {host, "localhost", "127.0.0.1"}] if port else ["*"]
    return Server({"/": application}, address=host, port=port, allow_websocket_origin=origins)


def serve(site: Site, host: str, port: int) -> None:
    server = make_server(site, host, port)
    server.start()
    print(f"listening http://{host}:{server.port}", flush=True)
    server.io_loop.start()
