"""Servers of ten shapes, whose saturation is known: the verdict finds it, and claims nothing else."""

import math
from typing import Any

import anyio
import attrs
import numpy as np
import pytest
from benchmarks_support import WORKLOAD, Scripted, generate, sent
from support.known_servers import OUTPUT, Server, analysed, closed, opened

from benchmarks.analysis.backlog import backlog
from benchmarks.analysis.knee import Knee, NoKnee
from benchmarks.analysis.rates import RateKnee
from benchmarks.analysis.report import conclusion
from benchmarks.generator.run import Measured
from benchmarks.recording.results import Point
from benchmarks.sweep.early_stop import EarlyStop, run_until_saturated
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Fixed

LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
FIXED = Server(step=lambda batch: 0.02)
FULL_BATCH = Server(step=lambda batch: 0.02 + 0.0001 * batch, max_batch=8)
# Half of the step's time comes from the batch at 20 requests, where the two asymptotes meet.
LINEAR = Server(step=lambda batch: 0.02 + 0.001 * batch)
GRADUAL = Server(step=lambda batch: 0.02 * (1 + (batch / 20) ** 0.8) ** 1.25)
ENGINE = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
URL = ("running", "waiting")


def swept(server, engine=None, seed=0):
    analysis = analysed([closed(server, level, seed) for level in LEVELS], engine)
    found = analysis.sweeps[0].saturation
    assert found is not None
    return found


CLOSED = {
    "full batch": (FULL_BATCH, {"max_num_seqs": 8}, 8, "batch", "max_num_seqs is 8 and 8.0 more requests wait"),
    "full batch of a URL": (attrs.evolve(FULL_BATCH, reports=URL), None, 8, "batch", "the server runs 8 requests at a time while 8.0"),
    "full batch, no metrics": (attrs.evolve(FULL_BATCH, reports=()), None, 8, "first token", "the server reports no queue"),
    "KV cache": (attrs.evolve(FIXED, kv_tokens=12 * 84), ENGINE, 12, "kv cache", "the KV cache is full (100%"),
    "host": (attrs.evolve(FIXED, host=0.001), ENGINE, 20, "host process", "% of a core"),
    "linear steps": (LINEAR, ENGINE, 20, "step time", "nothing waits, but a step of the engine takes"),
    "linear steps, no metrics": (attrs.evolve(LINEAR, reports=()), None, 20, "step time", "per later token 1."),
    "refusing a quarter": (attrs.evolve(FULL_BATCH, refuse_every=4), {"max_num_seqs": 8}, 8, "batch", "The server refuses 25% of"),
    "gradual": (GRADUAL, ENGINE, 20, "step time", "nothing waits"),
}


@pytest.mark.parametrize(("server", "engine", "knee", "cause", "words"), CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("seed", range(3))
def test_a_known_knee_lies_in_its_interval_and_has_its_cause(server, engine, knee, cause, words, seed):
    found = swept(server, engine, seed)
    assert isinstance(found.knee, Knee), found.verdict
    assert found.knee.low <= knee <= found.knee.high
    assert found.cause is not None
    assert found.cause.name == cause
    assert words in found.verdict


def test_the_highest_throughput_is_that_of_the_best_repeat():
    """A regression: the verdict gave the first repeat's throughput beside a table with a higher one."""
    faster = attrs.evolve(FULL_BATCH, step=lambda batch: 0.018 + 0.0001 * batch)
    runs = [closed(server, level, seed) for seed, server in enumerate((FULL_BATCH, faster)) for level in LEVELS]
    analysis = analysed(runs, {"max_num_seqs": 8})
    assert analysis.sweeps[0].saturation.peak == max(view.summary.tokens_per_second for view in analysis.views)


NO_KNEE = {
    "flat": (attrs.evolve(FIXED, max_batch=1), "throughput does not grow with the load"),
    "still growing": (FIXED, "still grows at concurrency 128"),
    "refusing most": (attrs.evolve(FIXED, max_open=12), "The server refuses 99% of the requests at concurrency 32"),
}


@pytest.mark.parametrize(("server", "words"), NO_KNEE.values(), ids=NO_KNEE)
@pytest.mark.parametrize("seed", range(3))
def test_a_server_without_a_known_knee_gets_none(server, words, seed):
    found = swept(server, ENGINE, seed)
    assert isinstance(found.knee, NoKnee)
    assert words in found.verdict


@pytest.mark.parametrize(
    ("server", "engine", "words"),
    [
        (FULL_BATCH, {"max_num_seqs": 8}, "set --max-running 8, because further requests only wait"),
        (
            attrs.evolve(FULL_BATCH, reports=URL),
            None,
            "let at most 8 requests run (llmserve: --max-running 8), because further requests only wait",
        ),
        (LINEAR, ENGINE, "no limit follows from the knee, because doubling the load beyond it still adds 25%"),
    ],
)
def test_the_advice_follows_from_the_verdict(server, engine, words):
    """Regression: steps that grow linearly got "more only wait" at half of the peak."""
    found = swept(server, engine)
    assert words in " ".join(found.advice)
    assert sum("only wait" in line for line in found.advice) == ("only wait" in words)


def test_a_url_is_not_judged_by_the_engine_of_the_run_s_other_targets():
    analysis = analysed([closed(attrs.evolve(FULL_BATCH, reports=URL), level) for level in LEVELS], {"max_num_seqs": 256})
    for view in analysis.views:
        view.point.target = "http://127.0.0.1:8000"
    (sweep,) = analysis.sweeps
    assert sweep.saturation is not None
    assert "the server runs 8 requests at a time" in sweep.saturation.verdict


def test_a_server_without_metrics_gets_no_claim_about_waiting():
    """Regression: "nothing waits" where the TTFT was eight times as long."""
    found = swept(attrs.evolve(FULL_BATCH, reports=()))
    assert "wait" not in found.verdict + found.evidence + " ".join(found.advice)


def test_the_conclusion_prints_what_the_verdict_says():
    analysis = analysed([closed(FULL_BATCH, level) for level in LEVELS], {"max_num_seqs": 8})
    verdict = analysis.sweeps[0].saturation
    assert verdict is not None
    assert verdict.verdict in conclusion(analysis)


RATES = (0.4, 0.6, 0.8, 1.15, 1.3, 1.6)


def rated(server, engine=None, seed=0, rates=RATES, **load):
    """Return the analysis of open loops at multiples of the server's capacity."""
    return analysed([opened(server, rate * server.capacity, seed, **load) for rate in rates], engine)


OPEN = {
    "full batch": (FULL_BATCH, {"max_num_seqs": 8}, "batch", "the batch is full: max_num_seqs is 8"),
    "full batch of a URL": (attrs.evolve(FULL_BATCH, reports=URL), None, "batch", "the server runs 8 requests at a time"),
    "full batch, no metrics": (attrs.evolve(FULL_BATCH, reports=()), None, "first token", "the server reports no queue"),
    "one at a time": (Server(step=lambda batch: 0.008, max_batch=1), {"max_num_seqs": 1}, "batch", "max_num_seqs is 1"),
    "KV cache": (attrs.evolve(FIXED, kv_tokens=12 * 84), ENGINE, "kv cache", "the KV cache is full (100%"),
    "host": (attrs.evolve(FIXED, host=0.001), ENGINE, "host process", "% of a core"),
    "linear steps": (LINEAR, ENGINE, "step time", "nothing waits, but a step of the engine takes"),
    "gradual": (GRADUAL, ENGINE, "step time", "nothing waits"),
}


@pytest.mark.parametrize(("server", "engine", "cause", "words"), OPEN.values(), ids=OPEN)
@pytest.mark.parametrize(("seed", "shape"), [(0, 1.0), (1, math.inf)])
def test_a_known_capacity_lies_in_its_interval_and_has_its_cause(server, engine, cause, words, seed, shape):
    """Regression: 30 and 45 requests/s on a server of 22.9 were "steady", and rates got no verdict."""
    analysis = rated(server, engine, seed, shape=shape)
    assert all(view.valid for view in analysis.views)
    states = [view.state for view in analysis.views]
    assert "over-saturated" not in states[:2]
    assert "steady" not in states[-2:]
    found = analysis.rate_sweeps[0].saturation
    assert found is not None
    assert isinstance(found.knee, RateKnee), found.verdict
    assert found.knee.low <= server.capacity <= found.knee.high
    assert found.cause is not None
    assert found.cause.name == cause
    assert words in found.verdict
    assert "it is over-saturated" in found.verdict


@pytest.mark.parametrize(
    ("server", "rates", "words"),
    [
        (FULL_BATCH, (0.3, 0.5, 0.7), "was served: measure higher rates"),
        (FULL_BATCH, (1.3, 1.6, 2.0), "no lower rate was measured to be steady: measure lower rates (at most 19."),
        (attrs.evolve(FULL_BATCH, refuse_every=4), (0.3, 0.5, 0.7), "the server refuses 25% of the requests"),
    ],
)
def test_rates_on_one_side_of_the_capacity_make_no_knee(server, rates, words):
    found = rated(server, {"max_num_seqs": 8}, rates=rates).rate_sweeps[0].saturation
    assert found is not None
    assert not isinstance(found.knee, RateKnee)
    assert words in found.verdict


def test_a_server_that_refuses_the_excess_is_not_over_saturated():
    found = rated(attrs.evolve(FIXED, max_open=12), ENGINE, shape=math.inf)
    assert [view.state for view in found.views] == ["steady"] * 3 + ["refusing"] * 3
    verdict = found.rate_sweeps[0].saturation
    assert verdict is not None
    assert isinstance(verdict.knee, RateKnee)
    assert (verdict.knee.low, verdict.knee.high) == pytest.approx((24, 34.5), rel=0.02)
    assert "the server refuses" in verdict.verdict


def test_the_table_says_which_points_are_over_saturated():
    written = conclusion(rated(FULL_BATCH, {"max_num_seqs": 8}, rates=(0.5, 1.5)))
    assert written.count("| over-saturated |") == 1
    assert "over-saturated: of 28 requests/s, 19.3 are served" in written


def test_requests_that_time_out_are_a_backlog():
    """A client that leaves after two seconds keeps the number in flight low."""
    point, records, samples = opened(FULL_BATCH, 1.5 * FULL_BATCH.capacity)
    for record in records:
        if record.finished > record.intended + 2.0:
            record.finished, record.outcome = record.intended + 2.0, "timeout"
    (view,) = analysed([(point, records, samples)]).views
    assert view.state == "over-saturated"


ANSWERS = attrs.evolve(WORKLOAD, output=Fixed(OUTPUT))


@attrs.define
class Queue(Scripted):
    """Answers one request after another; as a system under test, it loads itself in virtual time."""

    name: str = "queue"
    processes: int = 0
    replaceable: bool = False
    vocabulary: tuple[int, int] = (1, 200)
    read: Any = None
    lock: anyio.Lock = attrs.field(factory=anyio.Lock)

    async def send(self, item, record, now, origin):
        async with self.lock:
            await anyio.sleep(0.1)
        record.deliveries.append((now(), OUTPUT))
        record.completion_tokens, record.outcome = OUTPUT, "ok"
        return ()

    async def run(self, job, measured, show):
        generator = generate(self, job.load, ANSWERS, seconds=job.seconds)
        generator.measured, generator.progress.changed = measured, show
        await generator.run()


@pytest.mark.parametrize(("rate", "stops"), [(8.0, False), (20.0, True)])
async def test_a_run_stops_when_its_rate_is_above_capacity(rate, stops):
    measured, shown = Measured(), []
    job = generate(None, Load(pattern="poisson", rate=rate), ANSWERS, seconds=60.0).job
    stopped = await run_until_saturated(Queue(), job, measured, shown.append, anyio.current_time)
    assert measured.complete == (not stops)
    assert (stopped is not None and 8.0 <= stopped < 30.0) == stops
    assert shown
    planned = 1200 if stops else len(measured.records)
    point = Point(number=0, target="t", rate=rate, pattern="poisson", planned=planned, complete=measured.complete, saturated_at=stopped)
    (view,) = analysed([(point, measured.records, [])]).views
    assert (view.valid, view.state) == (True, "over-saturated" if stops else "steady")


def flow(crowd, seconds=40.0, capacity=10.0):
    """Return one point's requests at 4/s, and further ones every 0.1 s from `crowd` seconds on, to a queue of a capacity."""
    due = [number / 4 for number in range(int(4 * seconds))]
    due = sorted(due + [crowd + number / 10 for number in range(int((seconds - crowd) * 10))])
    records, free = [], 0.0
    for number, at in enumerate(due):
        free = max(free, at) + 1 / capacity
        records.append(sent(number, at, free))
    return records


@pytest.mark.parametrize(("rate", "trend"), [(4.0, "undecided"), (14.0, "over-saturated")])
def test_a_server_that_answers_more_than_the_rate_is_not_over_saturated(rate, trend):
    """Regression: requests that came together by chance made a rate of 4.7/s over-saturated, of which 6.3/s were served."""
    found = backlog(flow(crowd=10.0), rate)
    assert found is not None
    assert np.mean(found.served) == pytest.approx(10.0, rel=0.02)
    assert found.after > found.before + 20
    assert found.trend == trend


@pytest.mark.parametrize(("rate", "stops"), [(4.0, False), (14.0, True)])
def test_a_run_goes_on_while_the_server_answers_more_than_the_rate(rate, stops):
    seen, records = EarlyStop(rate), flow(crowd=10.0)
    judged = []
    for tick in range(1, 200):
        at = tick / 5
        begun = sum(1 for record in records if record.intended <= at)
        done = sum(1 for record in records if record.finished is not None and record.finished <= at)
        judged.append(seen.over_saturated(at, begun - done, done))
    assert any(judged) == stops
