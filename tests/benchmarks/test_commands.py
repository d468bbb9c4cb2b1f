"""The command line, as its user meets it: a sweep of both targets, its files, and one line for what is wrong."""

import json
import shutil
import subprocess
import sys

import pytest

SWEEP = ["sweep", "--engine", "simulated", "--no-ceiling", "--requests", "8", "--per-client", "2", "--output-tokens", "8"]


def benchmarks(*arguments):
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.json"
    found = benchmarks(*SWEEP, "--target", "inprocess,http", "--concurrency", "1,2", "--out", str(path))
    assert found.returncode == 0, found.stderr
    assert "2 concurrencies were measured, and a bend needs at least 5" in found.stdout
    return path


def test_a_sweep_measures_both_targets_and_joins_the_engine_s_stages(run):
    facts = json.loads(run.read_text())
    assert [point["target"] for point in facts["points"]] == ["inprocess", "http", "inprocess", "http"]
    assert all(point["complete"] for point in facts["points"])
    found = benchmarks("table", str(run))
    assert found.returncode == 0
    assert found.stdout.count("at once | 128 | 8 | 8 |") == 4


def test_a_run_is_not_worse_than_itself(run):
    assert benchmarks("compare", str(run), str(run)).returncode == 0


def test_a_slower_engine_is_a_regression(run, tmp_path):
    for path in run.parent.iterdir():
        shutil.copy(path, tmp_path)
    slower = tmp_path / "slower.json"
    slow = [*SWEEP, "--engine-arg", "step_seconds=0.02", "--target", "inprocess,http", "--concurrency", "1,2", "--out", str(slower)]
    assert benchmarks(*slow).returncode == 0
    found = benchmarks("compare", str(run), str(slower))
    assert found.returncode == 1, found.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "--engine", "simulated"], "--concurrency"),
        (["sweep", "--target", "ftp://x", "--concurrency", "1"], "ftp://x"),
        (["sweep", "--target", "http://127.0.0.1:9", "--concurrency", "1"], "127.0.0.1:9"),
        (["sweep", "--concurrency", "1,nought"], "nought"),
        (["sweep", "--concurrency", "1", "--cancelling", "3"], "--cancelling"),
        (["run", "--engine", "simulated", "--trace", "missing.jsonl"], "missing.jsonl"),
        (["table", "missing.json"], "missing.json"),
        (["compare", "missing.json", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, tmp_path):
    out = ["--out", str(tmp_path / "run.json")] if arguments[0] in ("sweep", "run") else []
    found = benchmarks(*arguments, *out)
    assert found.returncode == 2
    assert words in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir()), "an existing file would have been lost"


def test_a_file_of_another_schema_is_named(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"schema": 1}')
    found = benchmarks("table", str(path))
    assert found.returncode == 2
    assert f"{path}: schema 1" in found.stderr
