"""Two runs of known servers: equal ones are silent, and a slower or failing one is named."""

import csv
import functools
import io
from typing import Any

import attrs
import pytest
from benchmarks_support import sent
from support.known_servers import Server, analysed, closed, opened

from benchmarks.__main__ import main
from benchmarks.analysis.compare import MARGIN, as_csv, compare
from benchmarks.recording import storage
from benchmarks.recording.results import Point, Sample

FAST = Server(step=lambda batch: 0.02 + 0.0005 * batch, max_batch=16, noise=0.05)
SLOW = attrs.evolve(FAST, step=lambda batch: 1.1 * (0.02 + 0.0005 * batch))
LEVELS = (1, 4, 16, 32)


@functools.cache
def run(server, seed):
    """Return closed loops, and an open loop whose arrivals are the same in each run."""
    opening = opened(server, 15.0, 1, 12.0)
    return analysed([*(closed(server, level, seed, per_client=6) for level in LEVELS), opening], ttft=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_equal_servers_are_silent(seed):
    found = compare(run(FAST, seed), run(FAST, seed + 100))
    assert not found.regressed(MARGIN)
    assert not found.notes
    assert len(found.ratios) > 20


@pytest.mark.parametrize("seed", range(20))
def test_a_server_that_is_a_tenth_slower_is_flagged(seed):
    assert compare(run(FAST, seed), run(SLOW, seed + 100)).regressed(MARGIN)


@pytest.mark.parametrize(("worse", "figure"), [(attrs.evolve(FAST, outage=5.0), "failed"), (attrs.evolve(FAST, refuse_every=4), "refused")])
def test_an_outage_and_refusals_are_flagged(worse, figure):
    """Regression: the exit code was 0 for a server that refuses a quarter of the requests."""
    found = compare(run(FAST, 0), run(worse, 1))
    assert any(share.regressed for share in found.shares)
    assert {share.figure for share in found.shares} == {figure}
    assert compare(run(worse, 1), run(FAST, 0)).shares[0].improved


def test_equal_refusals_are_silent():
    refusing = attrs.evolve(FAST, refuse_every=4)
    assert not compare(run(refusing, 0), run(refusing, 1)).regressed(MARGIN)


def test_fewer_answers_within_the_slo_are_a_regression():
    late = attrs.evolve(FAST, prefill=0.05)
    worse = [ratio for ratio in compare(run(FAST, 0), run(late, 0)).ratios if ratio.figure == "met the SLO"]
    assert worse
    assert all(ratio.regressed(MARGIN) for ratio in worse)


def test_a_point_that_is_not_valid_is_named_and_not_compared():
    broken = analysed([closed(FAST, 4)])
    broken.views[0].faults.append("sent late")
    found = compare(analysed([closed(FAST, 4), closed(FAST, 8)]), broken)
    assert found.ratios == []
    assert "times and throughput are not compared, because B is not valid: sent late" in " ".join(found.notes)
    assert "concurrency 8, prompt 64, output 20: only in A" in " ".join(found.notes)


def test_latencies_of_two_growing_backlogs_are_not_compared():
    sides = [analysed([opened(FAST, 2 * FAST.capacity, seconds=seconds)]) for seconds in (10.0, 20.0)]
    found = compare(sides[0], sides[1])
    assert [ratio.figure for ratio in found.ratios] == ["throughput"]
    assert not found.regressed(MARGIN)


@pytest.mark.parametrize(
    ("digests", "words", "compared"),
    [
        (("x", "x"), "both runs sent the same prompts, so times and throughput are not compared", False),
        (("x", "y"), "had 0% of A's prompt tokens and 90% of B's, which may explain a difference", True),
    ],
)
def test_a_difference_of_the_prefix_cache_is_named(digests, words, compared):
    """Regression: the same command twice was 2.14 times faster, with exit code 0."""
    sides = []
    for digest, hits in zip(digests, (0, 90), strict=True):
        point, records, _ = closed(FAST, 4)
        counted = [Sample(point=0, time=at, prefix_queries=int(100 * at), prefix_hits=int(hits * at)) for at in (0.0, 1.0)]
        sides.append(analysed([(point, records, counted)]))
        sides[-1].recording.run.workload["digest"] = digest
    found = compare(sides[0], sides[1])
    assert words in " ".join(found.notes)
    assert bool(found.ratios) == compared


def test_equal_prompts_on_a_server_that_hides_its_cache_are_a_warning():
    sides = [analysed([closed(FAST, 4, seed)]) for seed in range(2)]
    for side in sides:
        side.recording.run.workload["digest"] = "x"
    found = compare(sides[0], sides[1])
    assert "both runs sent the same prompts" in " ".join(found.notes)
    assert found.ratios


def test_the_command_fails_for_more_refusals_and_prints_what_it_leaves_out(tmp_path, call):
    for name, outcome in (("a", "ok"), ("b", "refused_503")):
        records = [sent(number, float(number), number + 0.5, "ok" if number % 2 else outcome) for number in range(100)]
        point = Point(number=0, target="t", concurrency=1, complete=True, planned=100)
        storage.write(tmp_path / f"{name}.json", analysed([(point, records, [])]).recording)
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    found = call(main, "compare", a, b)
    assert found.returncode == 1
    assert "| refused | 0.0% | 50.0% | +50.0 |" in found.stdout
    assert call(main, "compare", b, a).returncode == 0


def test_a_csv_has_every_figure_and_share_as_plain_numbers():
    found = compare(run(FAST, 0), run(attrs.evolve(SLOW, refuse_every=4), 1))
    rows = list(csv.DictReader(io.StringIO(as_csv(found, MARGIN))))
    every: list[Any] = [*found.ratios, *found.shares]
    assert [(row["load"], row["figure"]) for row in rows] == [(one.load, one.figure) for one in every]
    ratios, others = rows[: len(found.ratios)], rows[len(found.ratios) :]
    assert [float(row["b_to_a"]) for row in ratios] == [one.value for one in found.ratios]
    assert {row["compared_by"] for row in ratios} == {"ratio"}
    assert {row["compared_by"] for row in others} == {"difference"}
    assert "regression" in {row["verdict"] for row in ratios}
    assert {row["verdict"] for row in others} == {"regression"}
