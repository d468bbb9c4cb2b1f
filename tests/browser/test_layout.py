"""The report page at every width: nothing is cut off, and every axis can be read."""

import itertools
import subprocess
import sys
from functools import cache

import pytest
from browser.conftest import EXAMPLES, ROOT
from support.recordings import closed, opened, write

from benchmarks.recording.results import Promise
from benchmarks.recording.storage import find

pytestmark = pytest.mark.browser

in_both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"], indirect=True)
WIDTHS = (390, 768, 1100, 1400)
ONE_COLUMN_BELOW = 900
# What each visible chart shows. The width of a title is measured, because Bokeh draws it on a canvas.
CHARTS = """() => {
  const pen = document.createElement("canvas").getContext("2d")
  const box = (element) => { const {left, right, top, bottom} = element.getBoundingClientRect(); return {left, right, top, bottom} }
  const views = [...window.Bokeh.index.all_views()]
  const shown = views.filter((view) => view.model.type == "Figure" && view.el.checkVisibility({visibilityProperty: true}))
  return shown.map((figure) => {
    const own = views.filter((view) => view.plot_view === figure.plot_view || view.parent === figure)
    const axes = own.filter((view) => ["LinearAxis", "LogAxis"].includes(view.model.type) && view.model.visible)
    const {text, text_font, text_font_size, text_font_style} = figure.model.title
    pen.font = `${text_font_style} ${text_font_size} ${text_font}`
    return {
      title: text, title_width: pen.measureText(text).width, box: box(figure.el),
      frame: figure.frame.bbox.left,
      axes: axes.map((view) => ({label: view.model.axis_label, ticks: [...view.tick_coords.major[view.dimension]]})),
      legends: own.filter((view) => view.model.type == "Legend").map((view) => [...view.shadow_el.querySelectorAll(".bk-item")].map(box)),
    }
  })
}"""
SCROLLS = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
# Bokeh lays charts out after the window's size has changed, and draws on the next frame.
SETTLED = """() => new Promise((done) => {
  const sizes = () => [...window.Bokeh.index.all_views()].filter((view) => view.el?.getBoundingClientRect && view.model.type == "Legend")
    .map((view) => Object.values(view.el.getBoundingClientRect().toJSON()).join()).join()
  let before = null, same = 0
  const look = () => {
    const now = sizes() + innerWidth
    same = now === before ? same + 1 : 0
    before = now
    same > 10 ? done(true) : requestAnimationFrame(look)
  }
  look()
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Build a page on its first use, by its name."""
    folder = tmp_path_factory.mktemp("pages")

    def made():
        slo = Promise(ttft=0.03, tpot=0.05)
        points = [
            closed(number, level, target=name)
            for number, (level, name) in enumerate([(n, t) for n in (1, 2, 4, 8, 16, 32) for t in ("inprocess", "http")])
        ]
        yield write(folder / "with-invalid-points.json", points, invalid={4, 11}, promise=slo)
        yield write(
            folder / "with-refusals.json",
            [opened(n, rate) for n, rate in enumerate((1.0, 2.0, 5.0, 10.0))],
            invalid={3},
            refused=0.2,
            promise=slo,
        )
        yield write(folder / "third.json", [closed(n, level) for n, level in enumerate((1, 2, 4, 8, 16, 32))])

    @cache
    def build(name):
        runs = list(made()) if name == "made" else find(EXAMPLES / name)
        page = folder / f"{name}.html"
        subprocess.run([sys.executable, "-m", "reports", "build", *map(str, runs), "-o", str(page)], check=True, cwd=ROOT)
        return page.as_uri()

    return build


def is_1_2_or_5(tick):
    return f"{abs(tick):.0e}"[0] in "125" and abs(float(f"{tick:.0e}") - tick) <= 1e-9 * abs(tick)


def on_the_series(ticks):
    """Whether ticks are 1, 2 and 5 of each decade, or equal steps of 1, 2 or 5."""
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    even = max(steps) - min(steps) < 1e-6 * max(steps)
    return is_1_2_or_5(float(f"{steps[0]:.6g}")) if even else all(map(is_1_2_or_5, ticks))


def check(chart, width):
    where = f"{chart['title']!r} at {width} px"
    for axis in chart["axes"]:
        assert len(axis["ticks"]) >= 3, f"{where}: {axis}"
        assert on_the_series(axis["ticks"]), f"{where}: {axis}"
    box = chart["box"]
    assert box["left"] + chart["frame"] + chart["title_width"] <= width, f"{where}: the title is cut off"
    for items in chart["legends"]:
        for item in items:
            inside = box["left"] - 1 <= item["left"] and item["right"] <= box["right"] + 1 and item["bottom"] <= box["bottom"] + 1
            assert inside, f"{where}: a legend is cut off: {item} in {box}"


@in_both_schemes
@pytest.mark.parametrize("name", ["cpu-smollm2", "h200-qwen2.5-1.5b", "made"])
def test_the_page_fits_at_every_width(reader, scheme, pages, name):
    reader.open(pages(name))
    tabs = reader.page.locator(".bk-tab")
    titles = tabs.all_inner_texts()
    for index, title in enumerate(titles):
        tabs.nth(index).click()
        for width in WIDTHS:
            reader.page.set_viewport_size({"width": width, "height": 900})
            reader.page.evaluate(SETTLED)
            charts = reader.page.evaluate(CHARTS)
            assert not reader.page.evaluate(SCROLLS), f"{title} at {width} px scrolls sideways"
            for chart in charts:
                check(chart, width)
            if title == "Saturation":
                columns = {round(chart["box"]["left"]) for chart in charts}
                assert len(columns) == (1 if width < ONE_COLUMN_BELOW else 2)
            if width in (WIDTHS[0], WIDTHS[-1]):
                reader.keep(f"layout-{name}-{title}-{width}-{scheme}")
    assert reader.errors == []
