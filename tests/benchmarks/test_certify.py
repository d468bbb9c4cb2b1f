"""Validity of a point: each fault by itself, and a generator that is really beyond its ceiling."""

import asyncio

import attrs
import msgspec
import pytest
from benchmarks_support import WORKLOAD, closed, generate, sent

from benchmarks.analysis import summary, validity
from benchmarks.analysis.stages import Waterfall
from benchmarks.generator.run import Measured
from benchmarks.recording.results import Point, Worker
from benchmarks.stand_ins.virtual_clock import VirtualLoop
from benchmarks.sweep import session
from benchmarks.sweep.generator_ceiling import http_rig
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed


@pytest.fixture
async def measured():
    return (await closed(concurrency=2, requests=200)).records


def point(**changes):
    return Point(**{"number": 0, "target": "t", "concurrency": 2, "planned": 200, "seconds": 125.0, "complete": True, **changes})


def faults(records, waterfall=None, ceiling=None, **changes):
    return validity.faults(point(**changes), records, summary.summarize(records), waterfall, ceiling)


async def test_a_clean_point_has_no_fault(measured):
    assert faults(measured) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"complete": False}, "cut short after 200"),
        ({"planned": 205}, "5 of 205 arrivals were dropped"),
        ({"processes": 1, "client_cpu_seconds": 100.0}, "80% of a core"),
        ({"processes": 1, "loop_lag": 0.2}, "woke 200.0 ms late"),
        ({"ceiling": 10.0}, "more than 70%"),
        ({"waterfall": Waterfall({}, 1.0, 0.05, 1.0)}, "stages differ from the end-to-end time by 5.0%"),
    ],
)
async def test_every_fault_is_reported_with_its_number(measured, changes, words):
    (fault,) = faults(measured, **changes)
    assert words in fault


async def test_a_late_send_is_reported(measured):
    for one in measured:
        one.dispatched += 0.2
    assert any("sent up to 200.0 ms late" in fault for fault in faults(measured))


WORKERS = [
    Worker(name=name, requests=100, client_cpu_seconds=1.0, loop_lag=lag, clock_offset=3.0, clock_error=error)
    for name, lag, error in (("fine", 0.001, 0.001), ("other", 0.2, 0.2))
]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loop_lag": 0.2}, "worker other's event loop woke 200.0 ms late"),
        ({}, "the clock of worker other is known only within 200.0 ms, more than 125.0 ms"),
        ({"complete": False, "problem": "worker other was lost"}, "cut short after 200 of 200 requests: worker other was lost"),
    ],
)
async def test_a_fault_names_the_worker(measured, changes, words):
    assert any(words in fault for fault in faults(measured, processes=2, workers=WORKERS, **changes))


async def test_one_late_worker_of_many_is_reported(measured):
    """Its requests are fewer than the hundredth that the p99 of all leaves out."""
    workers = [msgspec.structs.replace(WORKERS[0], name=f"worker-{number}") for number in range(100)]
    for record in measured[7::100]:
        record.dispatched += 0.2
    found = faults(measured, concurrency=None, processes=100, workers=workers)
    assert found == ["worker worker-7 sent up to 200.0 ms late, more than 25.0 ms"]


async def test_a_wrong_number_of_tokens_is_reported(measured):
    measured[3].outcome = "wrong_token_count"
    measured[4].completion_tokens += 1
    assert "2 answers do not have the requested number of tokens" in " ".join(faults(measured))


async def test_a_request_that_never_ends_breaks_little_s_law(measured):
    end = max(one.finished for one in measured)
    assert any("Little's law" in fault for fault in faults([*measured, sent(999, 0.0, end + 1, "cancelled")]))


async def test_a_drift_is_reported():
    faster = await closed(concurrency=2, requests=200, gap=lambda now: 1.0 / (1 + now / 30))
    assert any("drifted by +" in fault for fault in faults(faster.records))


class Busy:
    """Answers immediately; each request costs `cost` virtual seconds of the generator's core."""

    def __init__(self, cost):
        self.cost = cost
        self.spent = 0.0

    async def send(self, item, record, now, origin):
        asyncio.get_running_loop().spend(self.cost)  # type: ignore[attr-defined]  # the loop below
        self.spent += self.cost
        record.deliveries.append((now(), 1))
        record.completion_tokens, record.outcome = 1, "ok"
        return ()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})])
@pytest.mark.parametrize(("cost", "words"), [(0.001, []), (0.005, ["ms late", "the bottleneck"])])
async def test_a_generator_beyond_its_ceiling_is_not_valid(cost, words):
    """The load needs a quarter of a core, then more than a whole core."""
    rate, target = 250.0, Busy(cost)
    generator = generate(target, Load(pattern="constant", rate=rate), attrs.evolve(WORKLOAD, output=Fixed(1)), seconds=10.0)
    generator.cpu_clock = lambda: target.spent
    await generator.run()
    told = point(concurrency=None, rate=rate, processes=1)
    session._conclude(told, generator.job, generator.measured)
    records = generator.measured.records
    found = validity.faults(told, records, summary.summarize(records, open_loop=True), None, None)
    assert len(found) == len(words)
    assert all(word in fault for word, fault in zip(words, found, strict=True))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_real_generator_beyond_its_ceiling_is_not_valid():
    """No machine's process can send 50,000 requests per second.

    All connections are open together: half as many as a process may commonly have open files.
    """
    rate = 50_000.0
    workload = attrs.evolve(WORKLOAD, output=Fixed(1))
    job = PointPlan(point=0, label="too much", load=Load(pattern="constant", rate=rate), workload=workload, requests=0, seconds=0.01)
    measured, told = Measured(), point(concurrency=None, rate=rate, processes=1)
    async with http_rig() as rig:
        await rig.run(job, measured, lambda _: None)
    session._conclude(told, job, measured)
    found = validity.faults(told, measured.records, summary.summarize(measured.records, open_loop=True), None, None)
    assert any("late" in fault for fault in found)
