"""Golden tests: a target whose times are known exactly, on a virtual clock; what comes back must be those times."""

import itertools
import math

import anyio
import pytest

from benchmarks import arrivals, results, summary
from benchmarks.load import Generator, warm_up
from benchmarks.results import Point, RequestRecord, Run
from benchmarks.targets import InProcess
from benchmarks.workloads import Fixed, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.simulated import SimulatedConfig, SimulatedEngine

WORKLOAD = Workload(prompt=Fixed(8), output=Fixed(4), vocabulary=(1, 200))


class Scripted:
    """Delivers `tokens` at a time after each of `gaps`; while `stalled` (a span of time) nothing moves."""

    name = "scripted"

    def __init__(self, gaps=(0.25, 0.4, 0.1, 0.4, 0.1), tokens=1, stalled=(0.0, 0.0)):
        self.gaps = gaps
        self.tokens = tokens
        self.stalled = stalled

    async def send(self, item, record, now, origin):
        record.accepted = now()
        for gap in self.gaps:
            await anyio.sleep(gap)
            if self.stalled[0] <= now() < self.stalled[1]:
                await anyio.sleep(self.stalled[1] - now())
            record.deliveries.append((now(), self.tokens))
            record.completion_tokens += self.tokens
        record.outcome = "ok"


async def closed(target, concurrency=1, requests=10):
    generator = Generator(target, Point(number=0, target=target.name, concurrency=concurrency))
    await generator.closed_loop(WORKLOAD.items(), requests)
    return generator


@pytest.mark.parametrize("tokens", [1, 3])
async def test_known_times_come_back_exactly(tokens):
    generator = await closed(Scripted(tokens=tokens), requests=100)
    found = summary.summarize(generator.records)
    assert found.ttft.at("p50") == pytest.approx(0.25)
    assert found.e2e.at("p50") == pytest.approx(1.25)
    # Four gaps, two of each, weighted by the tokens that ended them.
    assert found.itl.count == 400 * tokens
    assert found.itl.at("p50") == pytest.approx(0.1 / tokens)
    assert found.itl.at("p95") == pytest.approx(0.4 / tokens)
    assert found.tpot.at("p50") == pytest.approx(1.0 / (4 * tokens))
    assert found.tokens_per_second == pytest.approx(5 * tokens / 1.25, rel=0.02)
    assert found.outcomes == {"ok": 100}


async def test_a_closed_loop_keeps_its_concurrency():
    generator = await closed(Scripted(gaps=(1.0,)), concurrency=4, requests=20)
    assert generator.point.seconds == pytest.approx(5.0)
    assert generator.point.complete
    assert summary.steady_window(generator.records) == pytest.approx((0.0, 5.0))


async def test_a_stall_shows_from_the_intended_send_and_hides_from_the_actual_one():
    """Coordinated omission: one client at a time cannot send while the server stalls."""

    class OneAtATime(Scripted):
        lock = None

        async def send(self, item, record, now, origin):
            self.lock = self.lock or anyio.Lock()
            async with self.lock:
                record.dispatched = now()
                await super().send(item, record, now, origin)

    target = OneAtATime(gaps=(0.05,), stalled=(5.0, 9.0))
    generator = Generator(target, Point(number=0, target="scripted", rate=10.0))
    await generator.open_loop(WORKLOAD.items(), arrivals.constant(10.0), 30.0)
    found = summary.summarize(generator.records)
    assert len(generator.records) == 300
    assert [record.intended for record in generator.records[:3]] == [0.0, 0.1, 0.2]
    assert found.ttft_service.at("p95") == pytest.approx(0.05)
    assert found.ttft.at("p95") > 3.0


async def test_an_open_loop_sends_on_time_whatever_becomes_of_it():
    generator = Generator(Scripted(gaps=(100.0,)), Point(number=0, target="scripted", rate=5.0))
    await generator.open_loop(WORKLOAD.items(), arrivals.constant(5.0), 10.0)
    assert [record.dispatched for record in generator.records] == pytest.approx([number / 5 for number in range(50)])
    assert summary.summarize(generator.records).lateness.at("p50") == 0.0


async def test_an_open_loop_s_throughput_is_that_of_its_load_and_not_of_its_peak():
    """A regression: over the span around the peak, 5 a second came out as 7."""
    generator = Generator(Scripted(gaps=(0.5, 0.5)), Point(number=0, target="scripted", rate=5.0))
    await generator.open_loop(WORKLOAD.items(), arrivals.poisson(5.0, seed=1), 200.0)
    found = summary.summarize(generator.records, open_loop=True)
    sent = len(generator.records) / (found.window[1] - found.window[0])
    assert found.requests_per_second == pytest.approx(sent, rel=0.02)
    assert found.tokens_per_second == pytest.approx(2 * sent, rel=0.02)


async def test_an_impatient_client_is_an_outcome():
    workload = Workload(prompt=Fixed(1), output=Fixed(1), vocabulary=(1, 9), cancelling=1.0, patience=0.3)
    generator = Generator(Scripted(), Point(number=0, target="scripted", concurrency=1))
    await generator.closed_loop(workload.items(), 3)
    found = summary.summarize(generator.records)
    assert found.outcomes == {"cancelled": 3}
    assert found.ttft.count == 3
    assert found.e2e.count == 0
    assert found.e2e_adjusted.at("p50") == math.inf


async def test_a_run_cut_short_keeps_what_it_has():
    generator = Generator(Scripted(), Point(number=0, target="scripted", concurrency=2))
    with anyio.move_on_after(3.0):
        await generator.closed_loop(WORKLOAD.items(), 100)
    assert not generator.point.complete
    outcomes = [record.outcome for record in generator.records]
    assert outcomes.count("ok") == 4
    assert outcomes.count("cancelled") == 2


async def test_in_process_the_engine_s_stages_are_joined_in_and_in_order():
    engine = SimulatedEngine(SimulatedConfig(num_blocks=256))
    async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        target = InProcess(manager)
        await warm_up(target, WORKLOAD.items("warm-up"), 2, 4)
        generator = await closed(target, concurrency=4, requests=20)
    assert {record.outcome for record in generator.records} == {"ok"}
    for record in generator.records:
        stages = [record.intended, record.dispatched, record.engine_queued, record.engine_scheduled, record.engine_first_token]
        stages += [record.first_token, record.last_token, record.finished]
        assert stages == sorted(stages)
        assert sum(count for _, count in record.deliveries) == record.wanted_tokens


async def test_refusals_are_told_apart():
    engine = SimulatedEngine(SimulatedConfig())
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=1))
    async with EngineManager(engine, config) as manager:
        generator = await closed(InProcess(manager), concurrency=6, requests=30)
    outcomes = summary.summarize(generator.records).outcomes
    assert outcomes["refused_503"] > 0
    assert outcomes["refused_503"] + outcomes["ok"] == 30
    assert all(record.retry_after for record in generator.records if record.outcome == "refused_503")


def test_a_quantile_s_interval_needs_enough_values_and_covers_it():
    assert [summary.needed(share) for share in (0.95, 0.99, 0.999)] == [72, 368, 3688]
    few = summary.distribution([float(number) for number in range(50)])
    assert few.quantiles["p95"].low is None
    assert "p99" not in few.quantiles
    many = summary.distribution([float(number) for number in range(1000)])
    quantile = many.quantiles["p95"]
    assert quantile.low < quantile.value < quantile.high
    assert quantile.value == pytest.approx(950, abs=1)


def test_weights_count_as_repetition():
    weighted = summary.distribution([1.0, 2.0], [3, 1])
    assert weighted.count == 4
    assert weighted.mean == 1.25
    assert weighted.at("p50") == 1.0


def record(number, start, end, outcome="ok"):
    return RequestRecord(
        point=0,
        number=number,
        prompt_tokens=1,
        wanted_tokens=1,
        intended=start,
        dispatched=start,
        deliveries=[(end, 1)],
        finished=end,
        outcome=outcome,
    )


def test_the_steady_window_leaves_out_the_ramp_and_the_drain():
    records = [record(number, float(number), 20.0 - number) for number in range(10)]
    assert summary.steady_window(records) == (8.0, 12.0)


def test_a_run_survives_its_files(tmp_path):
    run = Run(command="x", started="now", provenance={"a": 1}, workload={}, points=[Point(number=0, target="t", rate=2.0, complete=True)])
    records = [record(number, 0.5, 1.5) for number in range(3)]
    results.write(tmp_path / "run.json", run, records)
    assert results.read(tmp_path / "run.json") == (run, records)
    assert "| t | 2/s | 3 | 3 |" in summary.table([(run.points[0], summary.summarize(records))])


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), ('{"schema": 99}', "schema 99"), ("[]", "schema None"), ("{", "run.json")]
)
def test_an_unreadable_run_is_named(tmp_path, content, words):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(results.UnreadableRun, match=words):
        results.read(path)


def test_items_are_endless():
    assert len(list(itertools.islice(WORKLOAD.items(), 10_000))) == 10_000
