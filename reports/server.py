"""Serves the page with Bokeh: choose runs, compare them, follow a live server.

Its event loop is its own, and it reads only files, apart from the followed server.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.models import Column, CustomJS, MultiChoice, UIElement
from bokeh.server.server import Server

from benchmarks.recording.storage import UnreadableRun, find
from reports.blocks.head import warning
from reports.lazy_panels import tabs
from reports.live import Live
from reports.page import INPUT_STYLE, roots, template
from reports.page_data import load

# Runs are compared in the order in which they are chosen.
PICK = "Runs (the Comparison tab compares each further run with the first)"
# A choice opens a new page, so that it has an address to link to.
REOPEN = """
const chosen = new URLSearchParams(pick.value.map((name) => ["run", name]))
chosen.set("tab", tabs.active)
window.location.search = chosen.toString()
"""


def open_page(document: Document, paths: Sequence[Path], price_per_hour: float | None = None) -> None:
    """Build one reader's page: the runs that its address names, or the newest run."""
    # The files are looked up for every reader, so that a reload shows new runs.
    files = {name: file for path in paths for name, file in _files(path).items()}
    context = document.session_context
    asked = context.request.arguments if context is not None and context.request is not None else {}
    names = [name.decode(errors="replace") for name in asked.get("run", [])]
    known = [name for name in names if name in files] or [max(files, key=lambda name: files[name].stat().st_mtime)]
    tab = asked.get("tab", [b"0"])[0]
    *above, pages = _content(
        [files[name] for name in known], {"Live": Live(document).panel()}, int(tab) if tab.isdigit() else 0, price_per_hour
    )
    above += [warning(f"run not found: {name}") for name in names if name not in files]
    pick = MultiChoice(title=PICK, options=list(files), value=known, stylesheets=[INPUT_STYLE], sizing_mode="stretch_width")
    pick.js_on_change("value", CustomJS(args={"pick": pick, "tabs": pages}, code=REOPEN))
    document.title = "llmserve reports"
    document.template = template()
    document.template_variables["title"] = document.title
    # Leave room for the button that switches between light and dark.
    document.add_root(Column(children=[pick, *above, pages], sizing_mode="stretch_width", margin=(28, 0, 0, 0)))


def _content(files: Sequence[Path], more: Mapping[str, UIElement], opened: int, price_per_hour: float | None) -> list[UIElement]:
    try:
        return roots(load(files, None, price_per_hour), more, opened)
    except UnreadableRun as error:
        return [warning(str(error)), tabs(more)]


def _files(path: Path) -> dict[str, Path]:
    """Return files by name; files in a folder have the folder's name in front."""
    return {str(Path(path.name, file.relative_to(path))): file for file in find(path)}


def make_server(paths: Sequence[Path], host: str, port: int, price_per_hour: float | None = None) -> Server:
    """Make a server that is not started yet.

    Raises UnreadableRun immediately for unreadable runs, not at the first reader's visit.
    """
    load(paths)

    application = Application(FunctionHandler(lambda document: open_page(document, paths, price_per_hour)))
    origins = [f"{name}:{port}" for name in {host, "localhost", "127.0.0.1"}] if port else ["*"]
    return Server({"/": application}, address=host, port=port, allow_websocket_origin=origins)


def serve(paths: Sequence[Path], host: str, port: int, price_per_hour: float | None = None) -> None:
    server = make_server(paths, host, port, price_per_hour)
    server.start()
    print(f"listening http://{host}:{server.port}", flush=True)
    server.io_loop.start()
