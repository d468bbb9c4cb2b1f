"""A run's files: a round trip, and errors that name an unreadable file."""

import gzip
import json
import pathlib
from typing import Any

import pytest

from benchmarks.analysis import report, table
from benchmarks.recording import storage
from benchmarks.recording.results import SCHEMA, Point, Recording, RequestRecord, Run, Sample

PUBLISHED = pathlib.Path(__file__).parents[2] / "docs/run.schema.json"


def recording():
    run = Run(
        command="x", started="now", provenance={"a": 1}, workload={}, points=[Point(number=0, target="t", concurrency=2, complete=True)]
    )
    times: dict[str, Any] = {"intended": 0.5, "dispatched": 0.5, "deliveries": [(1.25, 1)], "finished": 1.5}
    records = [RequestRecord(point=0, number=n, prompt_tokens=1, wanted_tokens=1, outcome="ok", **times) for n in range(3)]
    return Recording(run, records, [Sample(point=0, time=0.1, running=2)])


def test_a_run_survives_its_files(tmp_path):
    storage.write(tmp_path / "run.json", recording())
    assert storage.read(tmp_path / "run.json") == recording()
    assert not list(tmp_path.glob("*.part"))


def test_equal_records_make_equal_bytes(tmp_path):
    for name in ("a", "b"):
        storage.write(tmp_path / f"{name}.json", recording())
    assert storage.requests_path(tmp_path / "a.json").read_bytes() == storage.requests_path(tmp_path / "b.json").read_bytes()


def test_times_are_kept_to_the_microsecond(tmp_path):
    kept = recording()
    kept.records[0].finished = 1.0000004
    storage.write(tmp_path / "run.json", kept)
    assert storage.read(tmp_path / "run.json").records[0].finished == 1.0


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), ('{"schema": 99}', "schema 99"), ("[]", "schema None"), ("{", "run.json")]
)
def test_an_unreadable_run_is_named(tmp_path, content, words):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(storage.UnreadableRun, match=words):
        storage.read(path)


@pytest.mark.parametrize("damage", [b"", b"no gzip", None])
def test_a_run_whose_requests_are_damaged_or_gone_is_named(tmp_path, damage):
    storage.write(tmp_path / "run.json", recording())
    path = storage.requests_path(tmp_path / "run.json")
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(storage.UnreadableRun, match="requests"):
        storage.read(tmp_path / "run.json")


def test_a_sample_has_the_figures_of_all_requests(tmp_path):
    whole = recording()
    for record in whole.records:
        record.deliveries = [(1.25, 1), (2.0 + record.number, 2)]
        record.finished, record.completion_tokens = 2.0 + record.number, 3
    storage.write(tmp_path / "small.json", report.sample(whole, per_point=1, seed=0))
    small = report.analyse(storage.read(tmp_path / "small.json"))
    assert (len(small.recording.records), small.sent) == (1, 3)
    assert report.conclusion(small) == report.conclusion(report.analyse(whole))
    assert list(small.views[0].seconds("e2e")) == [1.5, 2.5, 3.5]
    assert report.conclusion(report.analyse(report.sample(small.recording, per_point=1, seed=1))) == report.conclusion(small)


def test_a_new_run_replaces_the_summary_of_an_old_sample(tmp_path):
    path = tmp_path / "run.json"
    storage.write(path, report.sample(recording(), per_point=1, seed=0))
    storage.write(path, recording())
    assert storage.read(path) == recording()
    assert not storage.summary_path(path).exists()


@pytest.mark.parametrize("damage", [b"", b"no gzip", gzip.compress(b"no summary", mtime=0)])
def test_a_damaged_summary_is_named(tmp_path, damage):
    path = tmp_path / "run.json"
    storage.write(path, report.sample(recording(), per_point=1, seed=0))
    storage.summary_path(path).write_bytes(damage)
    with pytest.raises(storage.UnreadableRun, match="summary"):
        report.analyse(storage.read(path))


def test_the_published_schema_is_the_code_s():
    """Run `python -m benchmarks schema > docs/run.schema.json` after a change of `results.py`."""
    assert json.loads(PUBLISHED.read_text()) == json.loads(json.dumps(storage.schema()))
    assert f"schema {SCHEMA}" in PUBLISHED.read_text()


def test_the_table_shows_the_figures_and_why_a_point_is_not_valid():
    found = report.analyse(recording())
    written = table.markdown(found)
    assert "| t | concurrency 2 |" in written
