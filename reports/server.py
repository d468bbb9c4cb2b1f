"""The page by a Bokeh server: pick runs, lay them beside each other, follow a live server. Reads files only, and its own loop."""

import html
from collections.abc import Sequence
from pathlib import Path

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.models import Column, MultiChoice, TabPanel, Tabs, UIElement
from bokeh.server.server import Server

from benchmarks.storage import UnreadableRun, find
from reports import words
from reports.content import load
from reports.live import Live
from reports.page import INPUT_STYLE, roots, template

# The order in which runs are picked is that of the comparison: the second over the first.
PICK = "Runs (pick two to compare the second with the first)"


class Session:
    """One reader's page."""

    def __init__(self, document: Document, paths: Sequence[Path]) -> None:
        # Looked for anew for every reader, so that a reload shows what was measured since.
        self._files = {name: file for path in paths for name, file in _files(path).items()}
        self._live = TabPanel(title="Live", child=Live(document).panel())
        names = list(self._files)
        newest = max(names, key=lambda name: self._files[name].stat().st_mtime)
        self._pick = MultiChoice(title=PICK, options=names, value=[newest], stylesheets=[INPUT_STYLE], sizing_mode="stretch_width")
        self._pick.on_change("value", lambda attr, old, new: self._show())
        self._area = Column(children=[], sizing_mode="stretch_width")
        self._tabs: Tabs | None = None
        self._show()
        document.title = "llmserve reports"
        document.template = template()
        document.template_variables["title"] = document.title
        # Beneath the button that switches between light and dark.
        document.add_root(Column(children=[self._pick, self._area], sizing_mode="stretch_width", margin=(28, 0, 0, 0)))

    def _show(self) -> None:
        active = self._tabs.active if self._tabs is not None else 0
        try:
            found = roots(load([self._files[name] for name in self._pick.value]))
        except UnreadableRun as error:
            message = f'<div class="banner bad"><p>{html.escape(str(error))}</p></div>'
            found = [words.block(message), Tabs(tabs=[], sizing_mode="stretch_width")]
        *above, tabs = found
        assert isinstance(tabs, Tabs)
        tabs.tabs = [*tabs.tabs, self._live]
        tabs.active = min(active, len(tabs.tabs) - 1)
        self._tabs = tabs
        children: list[UIElement] = [*above, tabs]
        self._area.children = children


def _files(path: Path) -> dict[str, Path]:
    """A file by its name, those of a folder by their way from it."""
    return {str(Path(path.name, file.relative_to(path))): file for file in find(path)}


def make_server(paths: Sequence[Path], host: str, port: int) -> Server:
    """Not started yet. Raises UnreadableRun at once for runs that cannot be read, not at the first reader's visit."""
    load(paths)

    def open_page(document: Document) -> None:
        Session(document, paths)

    application = Application(FunctionHandler(open_page))
    origins = [f"{name}:{port}" for name in {host, "localhost", "127.0.0.1"}] if port else ["*"]
    return Server({"/": application}, address=host, port=port, allow_websocket_origin=origins)


def serve(paths: Sequence[Path], host: str, port: int) -> None:
    """Until Ctrl-C."""
    server = make_server(paths, host, port)
    server.start()
    print(f"listening http://{host}:{server.port}", flush=True)
    server.io_loop.start()
