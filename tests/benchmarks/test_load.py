"""Golden tests: recorded times must equal a target's known times, on a virtual clock."""

import itertools
import math

import anyio
import attrs
import pytest
from benchmarks_support import WORKLOAD, Scripted, closed, generate, sent
from engines import ScriptedEngine

from benchmarks.analysis import summary
from benchmarks.analysis.evidence import gather
from benchmarks.analysis.steady_state import steady_window
from benchmarks.recording.machine import Machine
from benchmarks.recording.monitor import manager_source
from benchmarks.recording.results import Point, Sample
from benchmarks.targets.inprocess import InProcess
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine
from llmserve.request import Delta


async def opened(target, load, seconds):
    generator = generate(target, load, seconds=seconds)
    await generator.run()
    return generator.measured


@pytest.mark.parametrize("tokens", [1, 3])
async def test_known_times_come_back_exactly(tokens):
    measured = await closed(Scripted(tokens=tokens), requests=100)
    found = summary.summarize(measured.records)
    assert found.ttft.at("p50") == pytest.approx(0.25)
    assert found.e2e.at("p50") == pytest.approx(1.25)
    # Four gaps, two of each, weighted by the tokens that ended them.
    assert found.itl.count == 400 * tokens
    assert found.itl.at("p50") == pytest.approx(0.1 / tokens)
    assert found.itl.at("p95") == pytest.approx(0.4 / tokens)
    assert found.tpot.at("p50") == pytest.approx(1.0 / (4 * tokens))
    assert found.tokens_per_second == pytest.approx(5 * tokens / 1.25, rel=0.02)
    assert found.outcomes == {"ok": 100}


class PacedEngine(ScriptedEngine):
    """Delivers `tokens` per delivery after each of `gaps`, from the submission of a request."""

    def __init__(self, gaps, tokens):
        super().__init__(max_num_seqs=64)
        self.gaps = gaps
        self.tokens = tokens

    async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        async with anyio.create_task_group() as self.tasks:
            await super().run(task_status=task_status)

    async def submit(self, request_id, prompt, sampling, priority, sink):
        await super().submit(request_id, prompt, sampling, priority, sink)
        self.tasks.start_soon(self.deliver, request_id)

    async def deliver(self, request_id):
        for number, gap in enumerate(self.gaps, 1):
            await anyio.sleep(gap)
            ending = number == len(self.gaps)
            if ending:
                self.held.discard(request_id)
            self.sinks[request_id].put(Delta("x", (1,) * self.tokens, "length" if ending else None))


@pytest.mark.parametrize("tokens", [1, 3])
async def test_known_times_come_back_exactly_through_the_manager(tokens):
    gaps = [0.25, 0.4, 0.1, 0.4, 0.1]
    workload = Workload(prompt=Fixed(8), output=Fixed(5 * tokens), vocabulary=(1, 200))
    async with EngineManager(PacedEngine(gaps, tokens), ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        generator = generate(InProcess(manager), Load(concurrency=4), workload, requests=20)
        await generator.run()
    for record in generator.measured.records:
        times = [record.intended, *(time for time, _ in record.deliveries)]
        assert [after - before for before, after in itertools.pairwise(times)] == pytest.approx(gaps)
        assert [count for _, count in record.deliveries] == [tokens] * 5
        assert record.outcome == "ok"


async def test_a_closed_loop_keeps_its_concurrency():
    measured = await closed(Scripted(gaps=(1.0,)), concurrency=4, requests=20)
    assert measured.complete
    assert steady_window(measured.records) == pytest.approx((0.0, 5.0))


async def test_a_stall_shows_from_the_intended_send_and_hides_from_the_actual_one():
    """Coordinated omission: a single client cannot send while the server stalls."""

    class OneAtATime(Scripted):
        lock = None

        async def send(self, item, record, now, origin):
            self.lock = self.lock or anyio.Lock()
            async with self.lock:
                record.dispatched = now()
                await super().send(item, record, now, origin)

    target = OneAtATime(gaps=(0.05,), stalled=(5.0, 9.0))
    measured = await opened(target, Load(pattern="constant", rate=10.0), 30.0)
    found = summary.summarize(measured.records)
    assert len(measured.records) == 300
    assert [record.intended for record in measured.records[:3]] == [0.0, 0.1, 0.2]
    assert found.ttft_service.at("p95") == pytest.approx(0.05)
    assert found.ttft.at("p95") > 3.0


async def test_an_open_loop_sends_on_time_regardless_of_answers():
    measured = await opened(Scripted(gaps=(100.0,)), Load(pattern="constant", rate=5.0), 10.0)
    assert [record.dispatched for record in measured.records] == pytest.approx([number / 5 for number in range(50)])
    assert summary.summarize(measured.records).lateness.at("p50") == pytest.approx(0.0, abs=1e-9)


async def test_an_open_loop_s_throughput_is_that_of_its_load_and_not_of_its_peak():
    """Regression: over the span around the peak, 5 requests per second were reported as 7."""
    measured = await opened(Scripted(gaps=(0.5, 0.5)), Load(pattern="poisson", rate=5.0), 200.0)
    found = summary.summarize(measured.records, open_loop=True)
    sent = len(measured.records) / (found.window[1] - found.window[0])
    assert found.requests_per_second == pytest.approx(sent, rel=0.02)
    assert found.tokens_per_second == pytest.approx(2 * sent, rel=0.02)


async def test_an_impatient_client_is_an_outcome():
    workload = Workload(prompt=Fixed(1), output=Fixed(1), vocabulary=(1, 9), cancelling=1.0, patience=0.3)
    generator = generate(Scripted(), Load(concurrency=1), workload, requests=3)
    await generator.run()
    found = summary.summarize(generator.measured.records)
    assert found.outcomes == {"cancelled": 3}
    assert found.ttft.count == 3
    assert found.e2e.count == 0
    assert found.e2e_adjusted.at("p50") == math.inf


async def test_a_run_cut_short_keeps_what_it_has():
    generator = generate(Scripted(), Load(concurrency=2), requests=100)
    with anyio.move_on_after(3.0):
        await generator.run()
    assert not generator.measured.complete
    outcomes = [record.outcome for record in generator.measured.records]
    assert outcomes.count("ok") == 4
    assert outcomes.count("cancelled") == 2


async def test_in_process_the_engine_s_stages_are_joined_in_and_in_order():
    engine = SimulatedEngine(SimulatedConfig(num_blocks=256))
    async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        measured = await closed(InProcess(manager), concurrency=4, requests=20)
    assert {record.outcome for record in measured.records} == {"ok"}
    for record in measured.records:
        stages = [record.intended, record.dispatched, record.engine_queued, record.engine_scheduled, record.engine_first_token]
        stages += [record.first_token, record.last_token, record.finished]
        assert stages == sorted(stages)
        assert sum(count for _, count in record.deliveries) == record.wanted_tokens


@pytest.mark.parametrize(("salts", "hits"), [("aa", 64 / 65), ("ab", 0.0)])
async def test_a_repeated_run_finds_its_prompts_cached_and_a_salted_one_does_not(salts, hits):
    """Regression: the same command twice against one server was 2.14 times as fast."""
    workload = Workload(prompt=Fixed(65), output=Fixed(4), vocabulary=(1, 200))
    engine = SimulatedEngine(SimulatedConfig(num_blocks=4096))
    async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        read, samples = manager_source(manager, Machine()), []
        for salt in salts:
            await generate(InProcess(manager), Load(concurrency=2), attrs.evolve(workload, salt=salt), requests=20).run()
            samples.append(Sample(point=0, time=float(len(samples)), **await read()))
    assert gather(Point(number=0, target="t"), samples, (0.0, 1.0)).cache_hits == pytest.approx(hits)


async def test_refusals_are_distinguished():
    engine = SimulatedEngine(SimulatedConfig())
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=1))
    async with EngineManager(engine, config) as manager:
        measured = await closed(InProcess(manager), concurrency=6, requests=30)
    outcomes = summary.summarize(measured.records).outcomes
    assert outcomes["refused_503"] > 0
    assert outcomes["refused_503"] + outcomes["ok"] == 30
    assert all(record.retry_after for record in measured.records if record.outcome == "refused_503")


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


def test_the_steady_window_leaves_out_the_ramp_and_the_drain():
    records = [sent(number, float(number), 20.0 - number) for number in range(10)]
    assert steady_window(records) == (8.0, 12.0)


@pytest.mark.parametrize(("concurrency", "processes"), [(1, 4), (2, 3), (5, 4), (8, 1)])
def test_every_request_is_some_process_s_even_with_fewer_clients_than_processes(concurrency, processes):
    """Regression: one client shared among four processes sent a quarter of its requests."""
    whole = PointPlan(point=0, label="test", load=Load(concurrency=concurrency), workload=WORKLOAD, requests=10)
    shares = [
        PointPlan(point=0, label="test", load=whole.load, workload=WORKLOAD, requests=10, share=(n, processes)) for n in range(processes)
    ]
    assert sorted(item.prompt for share in shares for item in share.schedule()[1]) == sorted(item.prompt for item in whole.schedule()[1])
    assert sum(share.clients for share in shares) == concurrency
    assert all(share.clients for share in shares if share.schedule()[1])


async def test_a_failure_in_the_middle_of_a_stream_is_never_a_success():
    class Failing(Scripted):
        async def send(self, item, record, now, origin):
            await super().send(item, record, now, origin)
            record.outcome, record.detail = "error", "the engine died"
            return ()

    measured = await closed(Failing(), requests=4)
    found = summary.summarize(measured.records)
    assert found.outcomes == {"error": 4}
    assert found.requests_per_second == 0
    assert found.e2e.count == 0
    assert found.e2e_adjusted.at("p50") == math.inf


async def test_a_conversation_carries_its_past_and_waits_for_its_answer():
    prompts = []

    class Listening(Scripted):
        async def send(self, item, record, now, origin):
            prompts.append(item.prompt)
            await super().send(item, record, now, origin)
            return (7, 7, 7)

    workload = Workload(prompt=Fixed(8), output=Fixed(3), vocabulary=(1, 200), turns=Fixed(3))
    generator = generate(Listening(), Load(concurrency=1), workload, requests=1)
    await generator.run()
    records = generator.measured.records
    assert [record.turn for record in records] == [0, 1, 2]
    assert [record.prompt_tokens for record in records] == [8, 19, 30]
    assert prompts[1][:11] == (*prompts[0], 7, 7, 7)
    assert [record.intended for record in records] == pytest.approx([0.0, 1.25, 2.5])


async def test_staggered_clients_are_out_of_step_and_their_leads_do_not_count():
    class ByLength(Scripted):
        async def send(self, item, record, now, origin):
            self.gaps = (0.1,) * item.max_tokens
            return await super().send(item, record, now, origin)

    workload = Workload(prompt=Fixed(8), output=Fixed(8), vocabulary=(1, 200))
    generator = generate(ByLength(), Load(concurrency=8, staggered=True), workload, requests=40)
    await generator.run()
    records = generator.measured.records
    leads = [record for record in records if record.lead]
    assert sorted(record.wanted_tokens for record in leads) == list(range(1, 9))
    # Then one of the eight begins every tenth of a second, instead of all eight every eight tenths.
    begins = sorted(record.dispatched for record in records if not record.lead)
    assert begins == pytest.approx([0.1 * (number + 1) for number in range(40)])
    found = summary.summarize(records)
    assert found.requests == 40
    assert found.outcomes == {"ok": 40}
    assert found.e2e.count == 40
    assert found.e2e.quantiles["p50"].value == pytest.approx(0.8)
    assert found.window[0] == pytest.approx(0.1)
    assert found.tokens_per_second == pytest.approx(80, rel=0.01)
    assert found.requests_per_second == pytest.approx(10, rel=0.03)
