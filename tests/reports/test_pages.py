"""The page as a document: every run has one, and it explains what is missing."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from bokeh.document import Document
from bokeh.models import Div

from benchmarks.analysis import report
from benchmarks.recording import storage
from benchmarks.recording.results import Memory, Point, Promise, Recording, RequestRecord, Run
from reports.charts.goodput import goodput
from reports.page import add_to
from reports.page_data import load

EXAMPLES_FOLDER = Path(__file__).parents[2] / "reports" / "examples"
EXAMPLES = storage.find(EXAMPLES_FOLDER)


def texts(*paths):
    document = Document()
    add_to(document, load(paths))
    document.validate()
    return " ".join(model.text for model in document.models if isinstance(model, Div))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_example_is_readable_and_valid(path):
    text = texts(path)
    assert "points are valid" in text or "not valid" in text


def test_a_sample_is_named_on_the_page(tmp_path):
    path = write(tmp_path / "a.json", [Point(number=0, target="http", concurrency=1, complete=True, planned=10)])
    assert "a sample of" not in texts(path)
    storage.write(path, report.sample(storage.read(path), per_point=4, seed=0))
    assert "a sample of 4 of 10 requests" in texts(path)
    assert "a.summary.gz" in texts(path)


def write(path, points, outcome="ok", **run):
    deliveries = [(0.5, 1), (0.75, 1)] if outcome == "ok" else []
    records = [
        RequestRecord(
            point=point.number, number=number, prompt_tokens=4, wanted_tokens=2, completion_tokens=len(deliveries),
            intended=float(number), dispatched=float(number), finished=number + 1.0, outcome=outcome,
            deliveries=[(number + at, count) for at, count in deliveries],
        )
        for point in points
        for number in range(10)
    ]  # fmt: skip
    provenance = {"engine": {"model": "<b>", "max_num_seqs": 4}}
    storage.write(
        path, Recording(Run(command="<script>", started="now", provenance=provenance, workload={}, points=points, **run), records, [])
    )
    return path


def test_a_single_closed_loop_has_no_curve_and_says_how_to_get_one(tmp_path):
    text = texts(write(tmp_path / "a.json", [Point(number=0, target="inprocess", concurrency=1, complete=True, planned=10)]))
    assert "A curve needs several loads" in text
    assert "There is no memory estimate" in text
    assert "Fewer than three prompt lengths" in text
    assert "Only one run" in text


def test_an_open_loop_alone_is_a_page(tmp_path):
    assert "No sweep, so there is no verdict" in texts(
        write(tmp_path / "a.json", [Point(number=0, target="http", rate=1.0, pattern="poisson", complete=True)])
    )


def test_a_run_without_answers_is_a_page(tmp_path):
    points = [Point(number=number, target="http", concurrency=2**number, complete=True) for number in range(3)]
    text = texts(write(tmp_path / "a.json", points, outcome="error", memory=Memory(device="cpu")))
    assert "no request was answered" in text
    assert "No request was answered" in text


@pytest.mark.parametrize("tokens", [[1, 1, 0], [1, 0, -1], [2, 0], [0], []])
def test_deliveries_without_tokens_are_on_the_table_and_the_page(tmp_path, tokens):
    """Regression: an empty chunk, counted as a token until the usage came, failed every reader."""
    path = write(tmp_path / "a.json", [Point(number=0, target="http", concurrency=1, complete=True, planned=10)])
    recording = storage.read(path)
    for record in recording.records:
        record.deliveries = [(record.intended + 0.1 * number, count) for number, count in enumerate(tokens, 1)]
    storage.write(path, recording)
    assert "| http | concurrency 1 |" in report.conclusion(report.analyse(storage.read(path)))
    assert "concurrency 1" in texts(path)


def test_failed_requests_are_on_the_page_in_the_server_s_words(tmp_path):
    path = write(tmp_path / "a.json", [Point(number=0, target="http", concurrency=1, complete=True, planned=10)])
    recording = storage.read(path)
    for record in recording.records[:2]:
        record.outcome, record.detail = "error", "the <engine> is out of memory"
    storage.write(path, recording)
    assert "Failed requests:" in texts(path)
    assert "2 x error: the &lt;engine&gt; is out of memory" in texts(path)


def test_a_run_s_texts_are_escaped(tmp_path):
    text = texts(write(tmp_path / "a.json", [Point(number=0, target="<i>", concurrency=1, complete=True)]))
    assert "<script>" not in text
    assert "<i>" not in text
    assert "&lt;b&gt; under load" in text


def test_runs_of_one_name_are_distinguished_by_their_folder(tmp_path):
    points = [Point(number=0, target="inprocess", concurrency=1, complete=True)]
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "run.json", points)
    assert [run.name for run in load([tmp_path]).runs] == ["new/run", "old/run"]


@pytest.mark.parametrize("command", ["build", "pictures", "serve"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.json", None, "missing.json"),
        ("old.json", '{"schema": 1}', "old.json: schema 1"),
        ("broken.json", "{", "broken.json"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, command, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    out = [] if command == "serve" else ["-o", str(tmp_path / "out")]
    found = subprocess.run(
        [sys.executable, "-m", "reports", command, str(tmp_path / name), *out], capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 2
    assert words in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_of_a_folder_only_runs_are_taken(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(storage.UnreadableRun, match="no runs"):
        load([tmp_path])
    write(tmp_path / "a.json", [Point(number=0, target="inprocess", concurrency=1, complete=True)])
    assert [run.name for run in load([tmp_path]).runs] == ["a"]


def test_an_empty_run_is_an_error(tmp_path):
    storage.write(tmp_path / "a.json", Recording(Run(command="x", started="now", provenance={}, workload={}), [], []))
    with pytest.raises(storage.UnreadableRun, match=r"a\.json: the run is empty"):
        load([tmp_path / "a.json"])


def test_goodput_has_a_line_for_each_admission_that_was_measured(tmp_path):
    points = [
        Point(number=number, target=target, rate=rate, pattern="poisson", complete=True)
        for number, (target, rate) in enumerate(itertools.product(("inprocess lategate", "inprocess none"), (1.0, 2.0)))
    ]
    content = load([write(tmp_path / "a.json", points, promise=Promise(ttft=1.0))])
    labels = [item.label.value for item in goodput(content).legend[0].items]
    assert labels == ["inprocess lategate, by rate", "inprocess none, by rate", "all met the SLO"]
