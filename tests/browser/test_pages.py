"""What a reader sees: the page as a file and from the server, in a browser without a network."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browser.conftest import DRAWN, EXAMPLES, ROOT

from benchmarks.recording.storage import find, read

pytestmark = pytest.mark.browser

in_both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"], indirect=True)

DRAWING_MS = 120_000
RUNS = find(EXAMPLES / "cpu-smollm2")
NAMES = [str(Path("cpu-smollm2", run.name)) for run in RUNS]
# Number of figures on each tab.
TABS = {
    "Saturation": 6,
    "Distributions": 2,
    "Timelines": 5,
    "Prompt lengths": 2,
    "Memory": 2,
    "Cost": 0,
    "Prediction": 1,
    "Comparison": 1,
    "Table": 0,
    "Data": 0,
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Build a page once for both schemes with `python -m reports`."""

    @cache
    def build(*arguments):
        page = tmp_path_factory.mktemp("built") / "report.html"
        subprocess.run([sys.executable, "-m", "reports", *map(str, arguments), "-o", str(page)], check=True, cwd=ROOT)
        return page.as_uri()

    return build


@in_both_schemes
def test_the_file_works_without_a_network(reader, scheme, build):
    reader.open(build("build", *RUNS))
    assert reader.click_through(f"file-{scheme}", TABS) == list(TABS)
    assert (reader.errors, reader.refused) == ([], [])


def test_a_chart_is_drawn_when_it_is_looked_at(reader, build):
    """Regression: Bokeh laid out all 59 figures of two runs before it showed the first, in 11 s."""
    reader.open(build("build", *RUNS))
    assert reader.page.evaluate(DRAWN) == TABS["Saturation"]
    reader.page.locator(".bk-tab", has_text="Timelines").click()
    reader.wait_for_figures(TABS["Timelines"])
    names = reader.page.locator("select option").all_inner_texts()
    assert len(names) > 3
    for name in names[1:3]:
        reader.page.get_by_label("Point").select_option(name)
        reader.wait_for_figures(TABS["Timelines"])
        assert reader.page.evaluate(DRAWN) == TABS["Saturation"] + TABS["Timelines"]
    assert reader.errors == []


@in_both_schemes
def test_text_follows_the_theme(reader, scheme, build):
    reader.open(build("build", RUNS[0]))
    ink = {"light": [0x1F, 0x24, 0x30], "dark": [0xE6, 0xE8, 0xEC]}
    reader.wait_for_colour(ink[scheme])
    reader.page.locator("#theme").click()
    reader.wait_for_colour(ink["dark" if scheme == "light" else "light"])
    # A tab that was hidden during the change follows, too.
    reader.page.locator(".bk-tab", has_text="Memory").click()
    reader.wait_for_colour(ink["dark" if scheme == "light" else "light"])


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-m", "reports", "serve", str(EXAMPLES / "cpu-smollm2"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline()).group()
        process.terminate()


def test_the_server_shows_the_same_page_to_one_reader_after_another(reader, server):
    """Regression: what two readers' pages shared ended with the first of them."""
    for _ in range(2):
        reader.open(f"{server}/?{urlencode([('run', name) for name in NAMES])}")
        assert reader.click_through("server", {**TABS, "Live": 6}) == [*TABS, "Live"]
    assert (reader.errors, reader.refused) == ([], [])


def test_runs_are_picked_and_compared(reader, server):
    reader.open(server)
    for run in RUNS:
        chosen = reader.page.locator(".choices__list--multiple").inner_text()
        if run.name not in chosen:
            reader.page.locator(".choices").click()
            reader.page.locator(".choices__item--choice", has_text=run.name).click()
    total = sum(len(read(run).run.points) for run in RUNS)
    reader.page.get_by_text(f"All {total} points are valid").wait_for(timeout=DRAWING_MS)
    assert reader.errors == []


def test_a_comparison_can_be_linked_to(reader, server):
    reader.open(f"{server}/?{urlencode([('run', name) for name in [*NAMES, 'nowhere.json']])}&tab=7")
    assert reader.page.locator(".choices__list--multiple").inner_text().count("json") == len(NAMES)
    assert reader.page.locator(".bk-tab.bk-active").inner_text() == "Comparison"
    reader.page.get_by_text("run not found: nowhere.json").wait_for()
    assert reader.errors == []


def test_a_missing_live_server_is_reported(reader, server):
    reader.open(server)
    reader.page.locator(".bk-tab").last.click()
    reader.page.get_by_label("Server").fill("http://127.0.0.1:9")
    reader.page.get_by_label("Server").press("Enter")
    reader.page.get_by_role("button", name="follow").click()
    reader.page.get_by_text("http://127.0.0.1:9/metrics: ").wait_for()
    assert reader.errors == []
