"""The simulated engine: the contract, paging, preemption, prefix sharing and faults."""

import anyio
import pytest
from contracts.engine_contract import CollectingSink, EngineContract, assert_dead
from hypothesis import given
from hypothesis import strategies as st

from llmserve import ConfigurationError, EngineDead, EngineError, EngineManager, GenerationRequest, ManagerConfig, RestartConfig, Sampling
from llmserve.config import AdmissionConfig
from llmserve.engines.simulated.engine import Fault, SimulatedConfig, SimulatedEngine
from llmserve.engines.simulated.paging import BlockPool
from llmserve.engines.simulated.text import StopWatcher


def manager_for(**config):
    admission = AdmissionConfig(max_running=0)
    # These tests look at the engine itself, so the fixture does not change it.
    left_alone = RestartConfig(most=0, stall_timeout=None)
    managing = ManagerConfig(admission=admission, restart=left_alone, drain_timeout=1)
    return EngineManager(SimulatedEngine(SimulatedConfig(**config)), managing)


async def all_of(manager, count, tokens, prompt="prompt"):
    """Return the answers of `count` concurrent requests."""
    answers = []

    async def one(number):
        request = GenerationRequest(f"{prompt} {number}", sampling=Sampling(max_tokens=tokens, ignore_eos=True, temperature=0))
        answers.append(await manager.generate(request))

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(one, number)
    return answers


class TestContract(EngineContract):
    @pytest.fixture
    async def engine(self):
        engine = SimulatedEngine()
        async with anyio.create_task_group() as tasks:
            await tasks.start(engine.run)
            yield engine
            tasks.cancel_scope.cancel()
        await assert_dead(engine)


class TestEngine:
    async def test_a_step_takes_what_the_law_says(self):
        law = {"step_seconds": 1.0, "prefill_token_seconds": 0.1, "sequence_seconds": 0.01, "kv_token_seconds": 0.0}
        async with manager_for(**law) as manager:
            began = anyio.current_time()
            await manager.generate("abcde", sampling=Sampling(max_tokens=3, ignore_eos=True))
            # Three steps with one sequence each; the first has five prompt tokens.
            assert anyio.current_time() - began == pytest.approx(3 * 1.01 + 0.5)

    async def test_no_delay_means_none(self):
        async with manager_for(time_scale=0.0) as manager:
            began = anyio.current_time()
            await all_of(manager, 20, 50)
            assert anyio.current_time() == began

    async def test_it_batches_no_more_than_it_may(self):
        async with manager_for(max_num_seqs=4) as manager, anyio.create_task_group() as tasks:
            tasks.start_soon(all_of, manager, 10, 20)
            await anyio.sleep(0.05)
            statistics = manager.statistics().engine
            assert (statistics.running, statistics.waiting) == (4, 6)

    async def test_a_long_prompt_is_prefilled_in_chunks(self):
        async with manager_for(max_num_batched_tokens=64) as manager:
            await manager.generate("x" * 640, sampling=Sampling(max_tokens=1))
            assert manager.statistics().engine.steps == 10

    async def test_a_full_cache_preempts_and_all_answers_stay_the_same(self):
        async with manager_for(num_blocks=4096) as roomy:
            expected = {answer.token_ids for answer in await all_of(roomy, 8, 300)}
        async with manager_for(num_blocks=128) as tight:
            answers = await all_of(tight, 8, 300)
            assert tight.statistics().engine.preemptions > 0
            assert tight.statistics().engine.kv_usage == 0
        assert {answer.token_ids for answer in answers} == expected

    async def test_a_shared_prefix_is_computed_once(self):
        async with manager_for() as manager:
            prefix = "shared " * 40
            first = await manager.generate(f"{prefix}one", sampling=Sampling(max_tokens=2))
            second = await manager.generate(f"{prefix}two", sampling=Sampling(max_tokens=2))
        assert first.usage.cached_tokens == 0
        assert second.usage.cached_tokens == 272  # the 17 full blocks of 16 in 280 shared bytes

    async def test_without_a_prefix_cache_nothing_is_shared(self):
        async with manager_for(prefix_caching=False) as manager:
            for _ in range(2):
                answer = await manager.generate("shared " * 40, sampling=Sampling(max_tokens=2))
        assert answer.usage.cached_tokens == 0

    async def test_death_reaches_all_sinks(self):
        async with manager_for(faults=[Fault(step=3, kind="die")]) as manager, manager.stream(GenerationRequest("x")) as stream:
            with pytest.raises(EngineDead, match="step 3"):
                await stream.collect()

    async def test_killed_it_ends_and_may_run_again_and_its_counters_go_on(self):
        engine = SimulatedEngine()

        async def live(*, task_status):
            with pytest.raises(EngineDead, match="killed"):
                await engine.run(task_status=task_status)

        for life in (1, 2):
            async with anyio.create_task_group() as tasks:
                await tasks.start(live)
                sink = CollectingSink()
                prompt = await engine.tokenize(GenerationRequest("hello"))
                await engine.submit(f"r{life}", prompt, Sampling(max_tokens=4, ignore_eos=True), 0, sink)
                await sink.ended.wait()
                assert engine.statistics().generation_tokens == 4 * life
                engine.kill()
            await assert_dead(engine)

    async def test_a_failed_request_fails_alone(self):
        async with manager_for(faults=[Fault(step=3, kind="fail")]) as manager:
            async with manager.stream(GenerationRequest("x")) as stream:
                with pytest.raises(EngineError, match="step 3"):
                    await stream.collect()
            await manager.generate("y")

    async def test_a_hang_makes_no_progress_and_can_be_left(self):
        async with manager_for(faults=[Fault(step=3, kind="hang")]) as manager:
            with anyio.move_on_after(1000):
                await manager.generate("x")
            assert manager.statistics().engine.steps == 3

    async def test_a_slow_step_is_slow_once(self):
        async with manager_for(faults=[Fault(step=2, kind="slow", seconds=100)]) as manager:
            began = anyio.current_time()
            await manager.generate("x")
            assert 100 < anyio.current_time() - began < 101

    async def test_it_can_be_run_again(self):
        engine = SimulatedEngine(SimulatedConfig(faults=(Fault(step=1, kind="die"),)))
        for _ in range(2):
            async with EngineManager(engine) as manager:
                sink = CollectingSink()
                await engine.submit("r", await engine.tokenize(GenerationRequest("x")), Sampling(max_tokens=1), 0, sink)
                await anyio.sleep(1)
            assert manager.state == "stopped"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_num_seq": 1}, "unknown engine argument 'max_num_seq'"),
        ({"max_num_seqs": "many"}, "max_num_seqs must be of type int"),
        ({"time_scale": -1.0}, "time_scale must not be negative"),
        ({"time_scale": float("nan")}, "time_scale must not be negative"),
        ({"num_blocks": 1}, "must hold at least max_model_len"),
    ],
)
def test_wrong_arguments_are_named(args, message):
    with pytest.raises(ConfigurationError, match=message):
        SimulatedEngine.from_args("m", args)


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(st.lists(st.tuples(tokens, st.booleans()), max_size=30), st.booleans())
def test_blocks_are_conserved_and_never_shared_by_mistake(sequences, caching):
    """In any order: every block is free or held, and cached prefixes hold the right content."""
    pool = BlockPool(16, 4, prefix_caching=caching)
    content, held = {}, []
    for sequence, release_first in sequences:
        if release_first and held:
            pool.release(held.pop(0))
        shared = pool.take_prefix(sequence)
        for number, block in enumerate(shared):
            assert content[block] == tuple(sequence[: (number + 1) * 4])
        fresh = pool.take(pool.blocks_for(len(sequence)) - len(shared))
        if fresh is None:
            pool.release(shared)
            continue
        assert not set(fresh) & {block for blocks in held for block in blocks}
        blocks = shared + fresh
        pool.remember(sequence, blocks)
        for number, block in enumerate(blocks):
            content[block] = tuple(sequence[: (number + 1) * 4])
        held.append(blocks)
    used = {block for blocks in held for block in blocks}
    assert pool.free == 16 - len(used)
    for blocks in held:
        pool.release(blocks)
    assert pool.free == 16
    assert pool.usage == 0


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_are_found_however_the_text_is_cut(text, stops, data):
    watcher = StopWatcher(Sampling(stop=stops))
    out, rest = "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        piece, rest = rest[:size], rest[size:]
        shown, found = watcher.feed(piece)
        out += shown
        if found is not None:
            assert out + found == text[: len(out) + len(found)]
            assert not any(stop in out for stop in stops)
            return
    assert out + watcher.flush() == text
    assert not any(stop in text for stop in stops)
