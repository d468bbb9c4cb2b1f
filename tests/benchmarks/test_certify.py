"""What makes a point not to be believed: each fault by itself, and a generator that is really driven past its ceiling."""

import attrs
import pytest
from benchmarks_support import closed, sent

from benchmarks import certify, session, summary
from benchmarks.load import Measured
from benchmarks.plan import Job, Load
from benchmarks.results import Point
from benchmarks.selftest import http_rig
from benchmarks.waterfall import Waterfall
from benchmarks.workloads import Fixed, Workload


@pytest.fixture
async def measured():
    return (await closed(concurrency=2, requests=200)).records


def point(**changes):
    return Point(**{"number": 0, "target": "t", "concurrency": 2, "planned": 200, "seconds": 125.0, "complete": True, **changes})


def faults(records, waterfall=None, ceiling=None, **changes):
    return certify.faults(point(**changes), records, summary.summarize(records), waterfall, ceiling)


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
        ({"waterfall": Waterfall({}, 1.0, 0.05, 1.0)}, "stages miss the end-to-end time by 5.0%"),
    ],
)
async def test_every_fault_is_told_with_its_number(measured, changes, words):
    (fault,) = faults(measured, **changes)
    assert words in fault


async def test_a_late_send_is_told(measured):
    for one in measured:
        one.dispatched += 0.2
    assert any("sent up to 200.0 ms late" in fault for fault in faults(measured))


async def test_a_wrong_number_of_tokens_is_told(measured):
    measured[3].outcome = "wrong_token_count"
    measured[4].completion_tokens += 1
    assert "2 answers have another number of tokens" in " ".join(faults(measured))


async def test_a_request_that_never_ends_breaks_little_s_law(measured):
    end = max(one.finished for one in measured)
    assert any("Little's law" in fault for fault in faults([*measured, sent(999, 0.0, end + 1, "cancelled")]))


async def test_a_drift_is_told():
    faster = await closed(concurrency=2, requests=200, gap=lambda now: 1.0 / (1 + now / 30))
    assert any("drifted by +" in fault for fault in faults(faster.records))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_generator_past_its_ceiling_is_not_believed():
    """Five times as many requests a second as a core can send, from one process, on a real clock. Half as many connections as
    a process may commonly have: all can be open at once, and were 20,000 on a slow day."""
    rate, seconds = 50_000.0, 0.2
    workload = Workload(prompt=Fixed(8), output=Fixed(1), vocabulary=(1, 200))
    job = Job(point=0, label="too much", load=Load(pattern="constant", rate=rate), workload=workload, requests=0, seconds=seconds)
    measured, told = Measured(), point(concurrency=None, rate=rate, processes=1)
    async with http_rig() as rig:
        await rig.run(job, measured, lambda _: None)
    session._conclude(told, job, measured)
    found = certify.faults(told, measured.records, summary.summarize(measured.records, open_loop=True), None, None)
    assert any("late" in fault for fault in found)
    assert any("bottleneck" in fault for fault in found)
    # The same process at a rate that it can keep up with.
    easy = attrs.evolve(job, load=Load(pattern="constant", rate=50.0), seconds=2.0, label="easy")
    measured, told = Measured(), point(concurrency=None, rate=50.0, processes=1)
    async with http_rig() as rig:
        await rig.run(easy, measured, lambda _: None)
    session._conclude(told, easy, measured)
    found = certify.faults(told, measured.records, summary.summarize(measured.records, open_loop=True), None, None)
    assert not any("bottleneck" in fault or "dropped" in fault for fault in found)
