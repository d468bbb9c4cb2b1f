"""A real Chromium that reaches only this machine and reports every error of its console."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from reports.pictures import find_browser

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "reports" / "examples"
# The canvases of each visible figure, because Bokeh's views live in nested shadow roots.
CANVASES = """
  const found = []
  const walk = (node) => {
    const seen = node.classList?.contains("bk-Canvas") && node.checkVisibility({visibilityProperty: true})
    if (seen) found.push([...node.shadowRoot.querySelectorAll("canvas")])
    for (const child of [...(node.shadowRoot?.children ?? []), ...node.children]) walk(child)
  }
  walk(document.body)
  const painted = ({width, height}) => width && height
  const pixels = (canvas) => painted(canvas) ? canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data : []
"""
# Whether each visible figure has something on it.
FIGURES = "() => {" + CANVASES + "return found.map((each) => each.some((canvas) => pixels(canvas).some((value) => value))) }"
# The number of figures, visible or not.
DRAWN = "() => [...window.Bokeh.index.all_views()].filter((view) => view.model.type == 'Figure').length"
# Whether each visible figure has a pixel of a colour.
COLOURED = (
    """([red, green, blue]) => {"""
    + CANVASES
    + """
  const is = (data, at) => data[at] == red && data[at + 1] == green && data[at + 2] == blue && data[at + 3] == 255
  const has = (data) => { for (let at = 0; at < data.length; at += 4) if (is(data, at)) return true }
  return found.length && found.every((each) => each.some((canvas) => has(pixels(canvas)))) }"""
)


class Reader:
    """Looks at one page."""

    def __init__(self, page, folder):
        self.page = page
        self.errors = []
        self.refused = []
        self._folder = folder
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route("**/*", self._route)

    def _route(self, route):
        if route.request.url.startswith(("file://", "http://127.0.0.1:")):
            route.continue_()
        else:
            self.refused.append(route.request.url)
            route.abort()

    def open(self, address):
        self.page.goto(address)
        self.page.wait_for_function("() => window.Bokeh?.documents?.length && window.Bokeh.documents.every((doc) => doc.is_idle)")

    def click_through(self, name, figures):
        """Open every tab, wait for its figures and keep a picture; returns the titles."""
        tabs = self.page.locator(".bk-tab")
        titles = tabs.all_inner_texts()
        for index, title in enumerate(titles):
            tabs.nth(index).click()
            self.wait_for_figures(figures[title])
            self.keep(f"{name}-{title}")
        return titles

    def wait_for_figures(self, number):
        """Wait until this number of figures is visible, and all of them are painted."""
        self.page.wait_for_function(
            f"() => {{ const all = ({FIGURES})(); return all.length == {number} && all.every((painted) => painted) }}"
        )

    def wait_for_colour(self, colour):
        """Wait until every visible figure has a pixel of the colour (RGB, 0 to 255 each)."""
        self.page.wait_for_function(COLOURED, arg=colour)

    def keep(self, name):
        self.page.screenshot(path=self._folder / f"{name}.png".replace(" ", "-").lower(), full_page=True)


@pytest.fixture(scope="session")
def browser():
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def scheme(request):
    """Return light, unless a test asks for other schemes."""
    return getattr(request, "param", "light")


@pytest.fixture
def reader(browser, scheme, tmp_path):
    """Pictures are kept in $TEST_ARTIFACTS, if it is set."""
    folder = Path(os.environ.get("TEST_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme=scheme)
    yield Reader(context.new_page(), folder)
    context.close()
