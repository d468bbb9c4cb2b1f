"""The three classic pictures as PNG, drawn by Chromium or Chrome without a driver."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.models import Plot, UIElement
from bokeh.resources import INLINE

from reports.charts.curves import latency, throughput
from reports.charts.memory import vram_usage
from reports.page_data import Content

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1100, 620
# Room for the title, the axis and a legend of several rows.
FRAME_MARGIN = 190
PAGE = """{% block postamble %}<style>
:root { --ink: #1f2430; --soft: #5b6472; --line: #d9dce1; --tile: #f5f6f8; }
body { margin: 12px; background: white; font-family: sans-serif; }
</style>{% endblock %}"""


class NoBrowser(Exception):
    """No browser was found; the message says what to install."""


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def draw(content: Content, folder: Path) -> list[Path]:
    """Write the pictures and return their paths. Raises NoBrowser."""
    browser = find_browser()
    if browser is None:
        raise NoBrowser(f"pictures need a browser; install one of {', '.join(BROWSERS)}")
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Callable[[Content], UIElement]] = {
        "throughput_vs_concurrency": throughput,
        "latency_vs_concurrency": latency,
        "vram_usage": vram_usage,
    }
    return [_draw(browser, make(content), folder / f"{name}.png") for name, make in charts.items()]


def _draw(browser: str, element: UIElement, out: Path) -> Path:
    document = Document()
    if isinstance(element, Plot):
        # A picture stands alone, so it is larger than a chart among others.
        element.frame_height = HEIGHT - FRAME_MARGIN
    document.add_root(element)
    with tempfile.TemporaryDirectory() as tmp:
        page = Path(tmp, "page.html")
        page.write_text(file_html(document, INLINE, out.stem, template=PAGE))
        command = [browser, "--headless=new", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp}/profile"]
        # Chromium refuses to run as root with its sandbox; the page is our own.
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--window-size={WIDTH},{HEIGHT}", "--force-device-scale-factor=2", "--virtual-time-budget=5000"]
        subprocess.run(  # noqa: S603 - the browser was looked up, and all else is ours
            [*command, f"--screenshot={out.resolve()}", page.as_uri()],
            check=True,
            capture_output=True,
            timeout=120,
        )
    return out
