"""Lines run behind other requests, adapt to admission, and survive deaths of the engine."""

import json
import random
from collections import Counter
from functools import partial

import anyio
import pytest

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.access.caller import Caller
from frontends.answers.served_model import ServedModel
from frontends.answers.vectors import Vectors
from frontends.batch.answers import Answers
from frontends.batch.room import Room
from frontends.batch.runner import EngineGone, Runner
from llmserve import AdmissionConfig, EngineManager, ManagerConfig, RestartConfig, TenantLimits, TenantTable
from llmserve.engines.simulated.engine import Fault, SimulatedConfig, SimulatedEngine

PATH = "/v1/completions"


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualLoop}


async def texts(count, prompt=16, output=32, **fields):
    """Yield lines with different prompts of `prompt` tokens."""
    source = random.Random(count)
    for number in range(1, count + 1):
        body = {"prompt": source.choices(range(1, 200), k=prompt), "max_tokens": output, "ignore_eos": True, **fields}
        yield number, json.dumps({"custom_id": f"r{number}", "method": "POST", "url": PATH, "body": body}).encode()


class Batch:
    """A manager on the simulated engine, and the results of a batch."""

    def __init__(self, config=None, alone=False, **engine):
        self.engine = SimulatedEngine(SimulatedConfig(**engine), model="sim")
        self.manager = EngineManager(self.engine, config or ManagerConfig())
        self.room = Room(self.manager, alone=alone)
        self.answers = Answers(ServedModel(self.manager, "sim"))
        self.runner = Runner(self.manager, self.room, self.answers)
        self.results = []

    async def put(self, result):
        self.results.append(result)

    async def run(self, lines):
        await self.runner.run(lines, self.answers.table, Caller(), self.put)

    async def all(self, lines):
        async with self.manager, self.runner.running():
            await self.run(lines)
        return self.results


# Others' requests: tokens of a prompt and of an answer, requests a second, and for how many seconds. With short prompts the time
# to a first token is a few steps, and the tokens of lines make each step longer (docs/batch.md).
ASKED, OUTPUT, RATE, SECONDS = 1024, 16, 6.0, 40.0


async def measured(*, asking, running):
    """Return the lines answered a second, and the 99th percentile of others' times to first token."""
    batch, ttfts = Batch(), []

    async def ask(prompt):
        async with batch.manager.stream(prompt, max_tokens=OUTPUT, ignore_eos=True) as stream:
            await stream.collect()
        ttfts.append(stream.timeline.first_token - stream.timeline.arrived)

    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:
            if running:
                tasks.start_soon(batch.run, texts(10**6, output=64))
            # The engine fills up.
            await anyio.sleep(2)
            source, begin, done = random.Random(1), anyio.current_time(), len(batch.results)
            while (passed := anyio.current_time() - begin) < SECONDS:
                await anyio.sleep(source.expovariate(RATE) if asking else SECONDS)
                if asking:
                    tasks.start_soon(ask, source.choices(range(1, 200), k=ASKED))
            lines = (len(batch.results) - done) / passed
            tasks.cancel_scope.cancel()
    return lines, sorted(ttfts)[int(0.99 * len(ttfts))] if ttfts else 0.0


async def test_lines_use_what_others_leave_and_hardly_delay_them():
    """Idle capacity is the share of the time in which others' requests do not saturate the engine."""
    alone, _ = await measured(asking=False, running=True)
    _, before = await measured(asking=True, running=False)
    lines, after = await measured(asking=True, running=True)
    saturated = Batch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(saturated.all, texts(10**6, ASKED, OUTPUT))
        await anyio.sleep(20)
        most = len(saturated.results) / 20
        tasks.cancel_scope.cancel()
    assert 0.2 < RATE / most < 0.8
    assert lines >= 0.9 * alone * (1 - RATE / most)
    assert after <= 1.05 * before


@pytest.mark.parametrize("alone", [True, False])
async def test_the_batch_of_the_engine_is_filled_but_for_a_part(alone):
    batch, most = Batch(alone=alone), 0
    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batch.run, texts(10**6, output=200))
            for _ in range(200):
                await anyio.sleep(0.02)
                most = max(most, batch.manager.statistics().running)
            tasks.cancel_scope.cancel()
    assert most == (18 if alone else 14)
    assert batch.manager.statistics().waiting == 0


async def test_lines_stop_when_others_need_their_slots_and_start_again():
    batch = Batch()
    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batch.run, texts(40, output=300))
            await anyio.sleep(1)
            assert batch.manager.statistics().running == 14
            async with anyio.create_task_group() as others:
                for number in range(16):
                    others.start_soon(partial(batch.manager.generate, [number + 1] * 8, max_tokens=100, ignore_eos=True))
                await anyio.sleep(0.1)
                # None of the others waits for a line.
                assert batch.manager.statistics().running == 16
                assert batch.engine.statistics().waiting == 0
            assert batch.runner.stopped >= 14
    # New lines wait until those have started again.
    assert {result.number for result in batch.results[:14]} == set(range(1, 15))
    assert sorted(result.number for result in batch.results) == list(range(1, 41))
    assert all(result.succeeded for result in batch.results)


async def test_refusals_are_few_and_no_line_is_lost():
    """Admission takes two, and the room expects more."""
    config = ManagerConfig(admission=AdmissionConfig(tenant_limit=2))
    batch = Batch(config)
    results = await batch.all(texts(40))
    refused = sum(batch.manager.statistics().admission.refused.values())
    assert sorted(result.number for result in results) == list(range(1, 41))
    assert all(result.succeeded for result in results)
    # Without a pause, each of 14 places would be refused every 10 ms.
    assert 0 < refused <= 40


async def test_a_tenant_at_its_limit_does_not_hold_up_others():
    limits = TenantTable({"poor": TenantLimits(tokens_per_minute=60)})
    batch, ends = Batch(ManagerConfig(admission=AdmissionConfig(tenants=limits))), {}

    async def run(tenant):
        await batch.runner.run(texts(12), batch.answers.table, Caller(tenant=tenant), batch.put)
        ends[tenant] = anyio.current_time()

    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "poor")
            tasks.start_soon(run, "rich")
    # 48 tokens a line: the poor tenant has a line each minute, more or less.
    assert ends["rich"] < 10
    assert ends["poor"] > 300
    assert len([result for result in batch.results if result.succeeded]) == 24
    assert sum(batch.manager.statistics().admission.refused.values()) < 300


async def test_a_line_with_more_choices_than_fit_is_answered_beside_others():
    batch = Batch()

    async def ask():
        while True:
            await batch.manager.generate([1, 2], max_tokens=20, ignore_eos=True)

    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with anyio.fail_after(100):
                await batch.run(texts(3, n=20, output=200))
            tasks.cancel_scope.cancel()
    assert all(result.succeeded for result in batch.results)
    assert batch.runner.stopped == 0


async def test_a_manager_that_drains_is_not_kept_waiting_by_lines():
    batch = Batch(ManagerConfig(drain_timeout=1000))
    async with batch.runner.running(), anyio.create_task_group() as tasks:
        async with batch.manager:
            tasks.start_soon(batch.run, texts(100, output=2000))
            await anyio.sleep(1)
            assert batch.manager.statistics().running == 14
            begin = anyio.current_time()
        assert anyio.current_time() - begin < 1
        tasks.cancel_scope.cancel()


async def test_lines_with_several_choices_and_invalid_ones_have_their_results():
    async def lines():
        async for line in texts(3, n=3):
            yield line
        yield 4, b"{}"
        async for number, text in texts(2, stream=True):
            yield number + 4, text
        async for number, text in texts(1, temperature=5):
            yield number + 6, text

    results = {result.number: result for result in await Batch().all(lines())}
    assert [len(json.loads(bytes(results[number].response.body))["choices"]) for number in (1, 2, 3)] == [3, 3, 3]
    assert results[4].error.code == "invalid_line"
    for number, param in ((5, "stream"), (6, "stream"), (7, "temperature")):
        assert results[number].response.status_code == 400
        assert json.loads(bytes(results[number].response.body))["error"]["param"] == param
    assert len(results) == 7


USER = [{"role": "user", "content": "hi"}]
BODIES = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": USER},
    "/v1/chat/completions/batch": {"messages": [USER, USER]},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": USER},
    "/inference/v1/generate": {"token_ids": [1, 2], "sampling_params": {"max_tokens": 4}},
    "/generate": {"prompt": "hi", "max_tokens": 4},
}


async def test_every_route_answers():
    async def lines(bodies):
        for number, (url, body) in enumerate(bodies.items(), 1):
            yield number, json.dumps({"custom_id": url, "method": "POST", "url": url, "body": body}).encode()

    batch = Batch()
    assert batch.answers.table.keys() == BODIES.keys() | Vectors.kinds.keys()
    results = {result.custom_id: result for result in await batch.all(lines(BODIES))}
    assert {url: result.response.status_code for url, result in results.items()} == dict.fromkeys(BODIES, 200)
    assert {url: result.response.request_id != "" for url, result in results.items()} == {
        url: url != "/v1/messages/count_tokens" for url in BODIES
    }


async def test_lines_survive_a_death_of_the_engine():
    restart = RestartConfig(first_pause=0.1, longest_pause=0.1)
    results = await Batch(ManagerConfig(restart=restart), faults=(Fault(step=30, kind="die"),)).all(texts(40))
    assert [result.succeeded for result in results] == [True] * 40


async def test_a_batch_ends_with_its_engine():
    batch = Batch(ManagerConfig(restart=RestartConfig(most=0)), faults=(Fault(step=30, kind="die"),))
    with pytest.raises(EngineGone):
        await batch.all(texts(100))
    assert len(batch.results) < 100


async def test_batches_take_turns():
    batch = Batch(max_num_seqs=4)
    ends = {}

    async def run(name, count):
        await batch.run(texts(count))
        ends[name] = len(batch.results)

    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "long", 100)
            tasks.start_soon(run, "short", 20)
    # The short batch waits for about as many lines of the long one as it has itself.
    assert ends["short"] <= 50
    assert ends["long"] == 120


async def shares(batches, config=None):
    """Run batches of 100 lines each until one tenant has all its lines; return the number of lines of each tenant until then."""
    batch, counts, left = Batch(config, max_num_seqs=4), Counter(), Counter(batches)

    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:

            async def run(tenant):
                async def put(_):
                    counts[tenant] += 1

                await batch.runner.run(texts(100), batch.answers.table, Caller(tenant=tenant), put)
                left[tenant] -= 1
                if not left[tenant]:
                    tasks.cancel_scope.cancel()

            for tenant in Counter(batches).elements():
                tasks.start_soon(run, tenant)
    return counts


async def test_a_tenant_with_many_batches_has_no_more_turns_than_one_with_a_single_batch():
    counts = await shares({"many": 16, "single": 1})
    assert counts["single"] == 100
    assert 90 <= counts["many"] <= 110


async def test_turns_go_by_the_weights_of_tenants():
    table = TenantTable({"light": TenantLimits(weight=0.2)})
    counts = await shares({"light": 4, "heavy": 1}, ManagerConfig(admission=AdmissionConfig(tenants=table)))
    assert counts["heavy"] == 100
    assert 16 <= counts["light"] <= 26


async def test_a_tenant_that_comes_later_does_not_make_up_for_the_turns_before():
    batch, ends = Batch(max_num_seqs=4), {}

    async def run(tenant, count):
        begin = len(batch.results)
        await batch.runner.run(texts(count), batch.answers.table, Caller(tenant=tenant), batch.put)
        ends[tenant] = len(batch.results) - begin

    async with batch.manager, batch.runner.running():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "early", 300)
            await anyio.sleep(3)
            assert 30 < len(batch.results) < 100
            tasks.start_soon(run, "late", 60)
    assert 95 <= ends["late"] <= 130
