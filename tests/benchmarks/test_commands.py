"""The command line as its users meet it: a sweep of both targets, its files, one-line errors."""

import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib

import pytest

from benchmarks.__main__ import main
from benchmarks.analysis import stages
from benchmarks.recording import storage

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = ["sweep", "--engine", "simulated", "--no-ceiling", "--requests", "8", "--per-client", "2", "--output-tokens", "8"]


def benchmarks(*arguments):
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.json"
    found = benchmarks(*SWEEP, "--target", "inprocess,http", "--concurrency", "1,2", "--out", str(path))
    assert found.returncode == 0, found.stderr
    return path


def test_a_sweep_measures_both_targets_and_joins_the_engine_s_stages(run):
    facts = json.loads(run.read_text())
    assert [point["target"] for point in facts["points"]] == ["inprocess", "http", "inprocess", "http"]
    assert all(point["complete"] for point in facts["points"])
    assert re.fullmatch("[0-9a-f]{8}", facts["workload"]["salt"]), "without --salt, each run draws one"
    found = benchmarks("table", str(run))
    assert found.returncode == 0
    assert [found.stdout.count(f"concurrency {number} | 128 | 8 | 8 |") for number in (1, 2)] == [2, 2]


def test_both_targets_record_every_stage_of_every_request(run):
    """Regression: HTTP requests were never joined to the engine's readings."""
    recording = storage.read(run)
    assert len(recording.records) == 4 * 8 + 2 * (1 + 2)
    for record in recording.records:
        parts = stages.stages(record)
        assert list(parts) == list(stages.STAGES)
        assert sum(parts.values()) == pytest.approx(record.last_token - record.intended, abs=1e-5)


def test_what_was_measured_survives_an_interrupt(tmp_path):
    out = tmp_path / "run.json"
    command = [sys.executable, "-m", "benchmarks", "run", "--engine", "simulated", "--no-ceiling", "--target", "http"]
    command += ["--concurrency", "4", "--requests", "5000", "--processes", "2", "--out", str(out)]

    def hear_interrupts():
        # A shell that starts the tests in the background makes them ignore SIGINT, and children
        # inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts) as process:  # noqa: PLW1509 - this process starts no thread
        seen = ""
        # Wait until some requests are answered, because the bar is already drawn at 0.
        while not re.search(r"[1-9]\d* of 5000 answered", seen):
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cut short after" in told
    recording = storage.read(out)
    assert [point.complete for point in recording.run.points] == [False]
    assert any(record.outcome == "ok" for record in recording.records)
    assert {record.outcome for record in recording.records} <= {"ok", "cancelled"}


class Broken(http.server.BaseHTTPRequestHandler):
    """Has a model, but answers every request for it with an error."""

    def do_GET(self):
        self.answer(200, b'{"data": [{"id": "broken"}]}')

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(500, b"out of luck")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_that_answers_500_is_quoted_and_no_older_file_is_lost(tmp_path):
    out = tmp_path / "run.json"
    out.write_text("from another day")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = benchmarks("run", "--target", f"http://127.0.0.1:{server.server_port}", "--concurrency", "2", "--out", str(out))
        server.shutdown()
    assert found.returncode == 2
    assert "does not answer requests: HTTP 500: out of luck" in found.stderr.splitlines()[-1]
    assert out.read_text() == "from another day"


def test_a_run_is_not_worse_than_itself(run, call):
    assert call(main, "compare", str(run), str(run)).returncode == 0


def test_a_slower_engine_is_a_regression(run, tmp_path, call):
    for path in run.parent.iterdir():
        shutil.copy(path, tmp_path)
    slower = tmp_path / "slower.json"
    slow = [*SWEEP, "--engine-arg", "step_seconds=0.02", "--target", "inprocess,http", "--concurrency", "1,2", "--out", str(slower)]
    assert benchmarks(*slow).returncode == 0
    found = call(main, "compare", str(run), str(slower))
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
def test_bad_input_is_one_clear_line(arguments, words, tmp_path, call):
    out = ["--out", str(tmp_path / "run.json")] if arguments[0] in ("sweep", "run") else []
    found = call(main, *arguments, *out)
    assert found.returncode == 2
    assert words in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir()), "an existing file would have been lost"


def test_a_file_of_another_schema_is_named(tmp_path, call):
    path = tmp_path / "old.json"
    path.write_text('{"schema": 1}')
    found = call(main, "table", str(path))
    assert found.returncode == 2
    assert f"{path}: schema 1" in found.stderr


IMPORT_ALL = """
import pkgutil, benchmarks, benchmarks.__main__
for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."):
    if module.name not in ("benchmarks.stand_ins.null_executor", "benchmarks.__main__"):  # vLLM imports the former
        __import__(module.name)
benchmarks.__main__.build_parser().print_help()
"""


def test_what_the_wheel_has_needs_nothing_that_it_omits(tmp_path):
    omitted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]
    for package in ("benchmarks", "frontends", "llmserve"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in omitted:
        shutil.rmtree(tmp_path / path, ignore_errors=True)
    found = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "sweep" in found.stdout
    assert "soak" not in found.stdout


def test_a_reader_that_has_ended_is_no_traceback(run):
    """Regression: `python -m benchmarks table run.json | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "benchmarks", "table", str(run)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
