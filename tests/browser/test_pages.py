"""What a reader sees: the page as a file and by the server, in a browser that reaches nothing else."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browser.conftest import EXAMPLES, ROOT

from benchmarks.storage import find, read

# Drawing without a GPU takes its time.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

DRAWING_MS = 120_000
RUNS = find(EXAMPLES / "cpu-smollm2")
TABS = ["Saturation", "Distributions", "Timelines", "Prompt lengths", "Memory", "Prediction", "Comparison", "Table", "Data"]


def test_the_file_works_without_a_network(reader, scheme, tmp_path):
    page = tmp_path / "report.html"
    subprocess.run([sys.executable, "-m", "reports", "build", *map(str, RUNS), "-o", str(page)], check=True, cwd=ROOT)
    reader.open(page.as_uri())
    shown = reader.click_through(f"file-{scheme}")
    assert list(shown) == TABS
    assert shown["Saturation"] == 6
    assert all(shown[tab] for tab in ("Distributions", "Timelines", "Prompt lengths", "Memory", "Prediction"))
    assert (reader.errors, reader.refused) == ([], [])


def test_text_follows_the_theme(reader, scheme, tmp_path):
    page = tmp_path / "report.html"
    subprocess.run([sys.executable, "-m", "reports", "build", str(RUNS[0]), "-o", str(page)], check=True, cwd=ROOT)
    reader.open(page.as_uri())
    ink = {"light": [0x1F, 0x24, 0x30], "dark": [0xE6, 0xE8, 0xEC]}
    reader.wait_for_colour(ink[scheme])
    reader.page.locator("#theme").click()
    reader.wait_for_colour(ink["dark" if scheme == "light" else "light"])
    # A tab that was not displayed meanwhile follows, too.
    reader.page.locator(".bk-tab", has_text="Memory").click()
    reader.wait_for_colour(ink["dark" if scheme == "light" else "light"])


@pytest.fixture
def server():
    command = [sys.executable, "-m", "reports", "serve", str(EXAMPLES / "cpu-smollm2"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline()).group()
        process.terminate()


def test_the_server_shows_the_same_page_to_one_reader_after_another(reader, scheme, server):
    """A regression: what two readers' pages shared ended with the first of them."""
    for _ in range(2):
        reader.open(server)
        assert list(reader.click_through(f"server-{scheme}")) == [*TABS, "Live"]
    assert (reader.errors, reader.refused) == ([], [])


def test_runs_are_picked_and_compared(reader, scheme, server):
    reader.open(server)
    for run in RUNS:
        chosen = reader.page.locator(".choices__list--multiple").inner_text()
        if run.name not in chosen:
            reader.page.locator(".choices").click()
            reader.page.locator(".choices__item--choice", has_text=run.name).click()
    total = sum(len(read(run).run.points) for run in RUNS)
    reader.page.get_by_text(f"All {total} points are valid").wait_for(timeout=DRAWING_MS)
    assert reader.errors == []


def test_a_comparison_can_be_linked_to(reader, scheme, server):
    names = [str(Path("cpu-smollm2", run.name)) for run in RUNS]
    reader.open(f"{server}/?{urlencode([('run', name) for name in [*names, 'nowhere.json']])}&tab=6")
    assert reader.page.locator(".choices__list--multiple").inner_text().count("json") == len(names)
    assert reader.page.locator(".bk-tab.bk-active").inner_text() == "Comparison"
    reader.page.get_by_text("there is no run nowhere.json").wait_for()
    assert reader.errors == []


def test_a_live_server_that_is_not_there_is_told(reader, scheme, server):
    reader.open(server)
    reader.page.locator(".bk-tab").last.click()
    reader.page.get_by_label("Server").fill("http://127.0.0.1:9")
    reader.page.get_by_label("Server").press("Enter")
    reader.page.get_by_role("button", name="follow").click()
    reader.page.get_by_text("http://127.0.0.1:9/metrics: ").wait_for()
    assert reader.errors == []


def test_the_study_of_overload_is_a_page(reader, scheme, tmp_path):
    page = tmp_path / "overload.html"
    study = EXAMPLES / "overload" / "study.json"
    subprocess.run([sys.executable, "-m", "reports", "overload", str(study), "-o", str(page)], check=True, cwd=ROOT)
    reader.open(page.as_uri())
    reader.wait_for_colour({"light": [0x1F, 0x24, 0x30], "dark": [0xE6, 0xE8, 0xEC]}[scheme])
    reader.keep(f"overload-{scheme}")
    assert (reader.errors, reader.refused) == ([], [])
