"""`--report`: the page of a run in the same command."""

import pytest
from support.recordings import closed, write

from benchmarks.__main__ import main
from benchmarks.sweep import report_page
from benchmarks.sweep.report_page import built_after
from benchmarks.targets import TargetError

POINTS = [closed(0, 1), closed(1, 2)]


def test_without_the_option_nothing_happens(tmp_path):
    with built_after(tmp_path / "run.json", None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_cut_short_has_a_page_too(tmp_path):
    run, page = tmp_path / "run.json", tmp_path / "page.html"
    with pytest.raises(KeyboardInterrupt), built_after(run, page):
        write(run, POINTS)
        raise KeyboardInterrupt
    assert "a model under load" in page.read_text()


def test_an_older_run_has_no_page_after_a_failure(tmp_path):
    run, page = write(tmp_path / "run.json", POINTS), tmp_path / "page.html"
    with pytest.raises(TargetError, match="does not answer"), built_after(run, page):
        raise TargetError("the server does not answer")
    assert not page.exists()


def test_a_page_that_cannot_be_built_is_an_error_that_names_the_run(tmp_path):
    run = tmp_path / "run.json"
    with (
        pytest.raises(TargetError, match=rf"--report .*page.html could not be built; the run is in {run}"),
        built_after(run, tmp_path / "page.html"),
    ):
        run.write_text("{}")


def test_a_missing_bokeh_is_reported_before_the_run(tmp_path, monkeypatch):
    # The package is installed wherever this test runs.
    monkeypatch.setattr(report_page, "find_spec", lambda name: None)
    with (
        pytest.raises(TargetError, match=r"--report needs Bokeh: pip install 'llmserve\[reports\]'"),
        built_after(tmp_path / "run.json", tmp_path / "p"),
    ):
        pytest.fail("the block ran")


def test_a_sweep_writes_its_page(tmp_path, call):
    run, page = tmp_path / "run.json", tmp_path / "page.html"
    sweep = ["sweep", "--engine", "simulated", "--no-ceiling", "--requests", "4", "--per-client", "2", "--output-tokens", "4"]
    found = call(main, *sweep, "--concurrency", "1,2", "--price-per-hour", "2", "--out", str(run), "--report", str(page))
    assert found.returncode == 0, found.stderr
    assert "cost per 1M tokens" in found.stdout
    assert "bundled under load" in page.read_text()
