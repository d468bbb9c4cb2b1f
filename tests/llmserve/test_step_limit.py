"""LateGate limits the tokens in a step of an engine that is up."""

import mmap
import os
from types import SimpleNamespace as Namespace
from typing import Any

import anyio
import pytest
from contracts.engine_contract import CollectingSink

from llmserve import SLO, AdmissionConfig, EngineManager, GenerationRequest, ManagerConfig, Sampling
from llmserve.admission import FixedLimit
from llmserve.engine import LimitsSteps
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine
from llmserve.engines.vllm.scheduling.limited_scheduler import limited
from llmserve.engines.vllm.scheduling.step_limit import SIZE, VARIABLE, StepLimit, least_of_core

# A step of 4,096 prompt tokens takes 164 ms.
SIZES: dict[str, Any] = {"max_model_len": 4096, "max_num_batched_tokens": 4096, "num_blocks": 4096, "prefix_caching": False}
TPOT = SLO(ttft=1.0, tpot=0.05)

# The simulated engine, and the manager


async def steps_of_prompt(engine, tokens, name="prompt"):
    """Return the number of steps that a prompt takes beside an answer."""
    answer, first = CollectingSink(), CollectingSink()
    await engine.submit(
        f"{name} answer", await engine.tokenize(GenerationRequest("x")), Sampling(max_tokens=500, ignore_eos=True), 0, answer
    )
    await answer.progress.wait()
    before = engine.statistics().steps
    prompt = await engine.tokenize(GenerationRequest(tuple(range(1, 201)) * (tokens // 200)))
    await engine.submit(name, prompt, Sampling(max_tokens=1, ignore_eos=True), 0, first)
    await first.ended.wait()
    steps = engine.statistics().steps - before
    await engine.abort(f"{name} answer")
    return steps


@pytest.mark.anyio
async def test_the_simulated_engine_limits_its_steps_beside_an_answer_and_no_others():
    engine = SimulatedEngine(SimulatedConfig(**SIZES))
    assert isinstance(engine, LimitsSteps)
    engine.allow_step_limit()
    async with anyio.create_task_group() as tasks:
        await tasks.start(engine.run)
        assert engine.info.min_step_tokens == 16
        whole = await steps_of_prompt(engine, 2000, "whole")
        engine.limit_step(101)
        assert await steps_of_prompt(engine, 2000, "limited") == whole + 19
        # Each running sequence still gets its token.
        engine.limit_step(1)
        assert await steps_of_prompt(engine, 200, "least") == whole + 13
        alone = CollectingSink()
        before = engine.statistics().steps
        await engine.submit("alone", await engine.tokenize(GenerationRequest((1,) * 2000)), Sampling(max_tokens=1), 0, alone)
        await alone.ended.wait()
        assert engine.statistics().steps == before + 1
        tasks.cancel_scope.cancel()


async def load(manager, count=80, rate=8.0):
    async def ask(number):
        request = GenerationRequest((1,) * (400 + 37 * number % 1600), sampling=Sampling(max_tokens=24, ignore_eos=True))
        await manager.generate(request)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(ask, number)
            await anyio.sleep(1 / rate)


@pytest.mark.anyio
async def test_a_manager_gives_each_engine_the_size_that_its_steps_allow_and_a_restarted_one_keeps_it():
    quick = SimulatedEngine(SimulatedConfig(**SIZES))
    slow = SimulatedEngine(SimulatedConfig(**SIZES, prefill_token_seconds=8e-5))
    async with EngineManager([quick, slow], ManagerConfig(slo=TPOT, drain_timeout=30)) as manager:
        await load(manager, count=300, rate=16.0)
        sizes = [engine.scheduler.step_tokens for engine in (quick, slow)]
        # 1,100 tokens take the 45 ms that are left of the target, and the other engine computes half as many.
        assert 850 < sizes[0] < 1300
        assert 400 < sizes[1] < 0.75 * sizes[0]
        assert manager.statistics().admission.step_tokens in sizes
        slow.kill()
        while manager.statistics().restarts < 1 or not manager.statistics().engines[1].up:
            await anyio.sleep(0.1)
        await load(manager, count=2)
        assert slow.scheduler.step_tokens == sizes[1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("engine", "slo", "admission"),
    [
        (SimulatedEngine.from_args("simulated", SIZES), TPOT, None),
        (SimulatedEngine(SimulatedConfig(**SIZES)), SLO(ttft=1.0), None),
        (SimulatedEngine(SimulatedConfig(**SIZES)), TPOT, "fixed"),
        (SimulatedEngine(SimulatedConfig(**SIZES)), TPOT, FixedLimit(8)),
    ],
    ids=["the operator's size", "no tpot", "another policy by name", "another policy"],
)
async def test_otherwise_the_engine_keeps_its_size(engine, slo, admission):
    async with EngineManager(engine, ManagerConfig(slo=slo, drain_timeout=30), admission=admission) as manager:
        await load(manager)
        assert manager.info.min_step_tokens is None
        assert manager.statistics().admission.step_tokens is None
        assert engine.scheduler.step_tokens == SIZES["max_num_batched_tokens"]


@pytest.mark.anyio
async def test_without_the_target_the_engine_gets_its_own_size_back():
    engine = SimulatedEngine(SimulatedConfig(**SIZES))
    async with EngineManager(engine, ManagerConfig(slo=TPOT, drain_timeout=30)) as manager:
        await load(manager)
        assert engine.scheduler.step_tokens < 1300
        manager.reconfigure(ManagerConfig(slo=SLO(ttft=1.0), admission=AdmissionConfig(), drain_timeout=30))
        await load(manager, count=2)
        assert engine.scheduler.step_tokens == SIZES["max_num_batched_tokens"]


@pytest.mark.anyio
async def test_an_engine_whose_prompts_would_get_small_pieces_keeps_its_size():
    """A regression: 30 tokens fitted beside 16 answers, and rounded down none were left for prompts."""
    engine = SimulatedEngine(SimulatedConfig(max_num_seqs=16, prefix_caching=False, step_seconds=0.02, prefill_token_seconds=1e-3))
    seconds = []

    async def ask(manager, number):
        start = anyio.current_time()
        # With the small size, LateGate refuses some of the long ones.
        await manager.generate(GenerationRequest((1,) * (20 if number % 10 else 300), sampling=Sampling(max_tokens=100, ignore_eos=True)))
        seconds.append(anyio.current_time() - start)

    async with EngineManager(engine, ManagerConfig(slo=TPOT, drain_timeout=30)) as manager, anyio.create_task_group() as tasks:
        for number in range(120):
            tasks.start_soon(ask, manager, number)
            await anyio.sleep(0.3)
    assert engine.scheduler.step_tokens == engine.config.max_num_batched_tokens
    assert len(seconds) == 120
    assert max(seconds) < 1 + 100 * 0.05


@pytest.mark.anyio
async def test_prompts_of_an_idle_engine_do_not_count_as_computed_in_no_time():
    """A regression: their steps are not timed, so a token seemed to take a tenth of its time, for minutes."""
    engine = SimulatedEngine(SimulatedConfig(**SIZES))
    async with EngineManager(engine, ManagerConfig(slo=TPOT, drain_timeout=30)) as manager:
        for _ in range(100):
            await manager.generate(GenerationRequest((1,) * 2000, sampling=Sampling(max_tokens=3, ignore_eos=True)))
        await load(manager)
        assert 850 < engine.scheduler.step_tokens < 1400


@pytest.mark.anyio
@pytest.mark.parametrize("fixed", [0, 1])
async def test_engines_are_limited_only_if_all_can_be(fixed):
    """A regression: the first engine decided for all, and LateGate counted with a size that the others did not have."""
    engines = [SimulatedEngine(SimulatedConfig(**SIZES), fixed_step=number == fixed) for number in range(2)]
    async with EngineManager(engines, ManagerConfig(slo=TPOT, drain_timeout=30)) as manager:
        await load(manager, count=160, rate=16.0)
        assert manager.statistics().admission.step_tokens is None
        assert [engine.scheduler.step_tokens for engine in engines] == [SIZES["max_num_batched_tokens"]] * 2


class Choosing(FixedLimit):
    step_tokens = 1024


@pytest.mark.anyio
async def test_a_policy_of_one_s_own_may_limit_the_steps():
    engine = SimulatedEngine(SimulatedConfig(**SIZES))
    async with EngineManager(engine, admission=Choosing(8)) as manager:
        await load(manager, count=2)
        assert manager.info.min_step_tokens is not None
        assert engine.scheduler.step_tokens == 1024


# The memory that vLLM's processes read


def config(**changes):
    """Return what the limit reads of a `VllmConfig`."""
    scheduler = {"scheduler_cls": None, "enable_chunked_prefill": True, "disable_chunked_mm_input": False, "max_num_seqs": 16}
    parallel = {"data_parallel_backend": "mp", "data_parallel_size": 1, "data_parallel_size_local": 1, "nnodes": 1}
    cache = {"mamba_cache_mode": "none", "block_size": 128}
    parts = [{name: changes.get(name, value) for name, value in part.items()} for part in (scheduler, parallel, cache)]
    drafts = changes.get("drafts")
    names = ("scheduler_config", "parallel_config", "cache_config")
    return Namespace(
        **{name: Namespace(**part) for name, part in zip(names, parts, strict=True)},
        speculative_config=None if drafts is None else Namespace(num_speculative_tokens=drafts),
    )


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 16),
        ({"drafts": 3}, 64),
        ({"mamba_cache_mode": "align"}, 144),
        ({"enable_chunked_prefill": False}, None),
        ({"disable_chunked_mm_input": True}, None),
        ({"scheduler_cls": "vllm.v1.core.sched.diffusion_scheduler.DiffusionScheduler"}, None),
        ({"data_parallel_size": 2}, None),
        ({"data_parallel_size": 2, "data_parallel_size_local": 2, "data_parallel_backend": "ray"}, None),
        ({"nnodes": 2}, None),
    ],
)
def test_the_least_size_lets_every_request_go_on(changes, least):
    assert least_of_core(config(**changes)) == least


def read(variables):
    with open(variables[VARIABLE], "rb") as file, mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ) as memory:
        return int.from_bytes(memory[:], "little")


def test_the_memory_has_each_core_s_part_until_it_is_closed_and_again_after_a_restart():
    limit = StepLimit()
    assert limit.variables() == {}
    limit.allow({"max_model_len": 2048})
    descriptors = len(os.listdir("/proc/self/fd"))
    variables = limit.variables()
    assert limit.variables() == variables
    assert limit.least(config(data_parallel_size=2, data_parallel_size_local=2)) == 32
    assert read(variables) == 0
    limit.set(1001)
    assert read(variables) == 500
    limit.close()
    limit.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    limit.set(800)
    assert read(limit.variables()) == 400
    limit.close()


@pytest.mark.parametrize("name", ["max_num_batched_tokens", "max_num_scheduled_tokens", "scheduler_cls"])
def test_the_operator_s_own_choice_stays(name):
    limit = StepLimit()
    limit.allow({name: 1024})
    limit.set(512)
    assert limit.variables() == {}
    assert limit.least(config()) is None
    limit.allow({name: None})
    assert limit.least(config()) == 16


class Scheduler:
    """As much of a scheduler of vLLM as the limit uses."""

    def __init__(self, vllm_config, running):
        self.max_num_scheduled_tokens = 1000
        self.running = running

    def schedule(self, throttle_prefills=False):
        return self.max_num_scheduled_tokens, throttle_prefills


ANSWER, PROMPT = Namespace(num_computed_tokens=5, num_prompt_tokens=4), Namespace(num_computed_tokens=2, num_prompt_tokens=4)


@pytest.mark.parametrize(
    ("running", "tokens", "scheduled"),
    [
        ([ANSWER], 0, 1000),
        ([ANSWER], 100, 100),
        ([PROMPT, ANSWER], 100, 100),
        ([PROMPT], 100, 1000),
        ([], 100, 1000),
        ([ANSWER], 5000, 1000),
        ([ANSWER], 3, 16),
    ],
)
def test_vllm_s_scheduler_obeys_the_memory_beside_an_answer(running, tokens, scheduled):
    memory = mmap.mmap(-1, SIZE)
    scheduler = limited(Scheduler, memory)(vllm_config=config(), running=running)
    assert scheduler.schedule() == (1000, False)
    memory[:] = tokens.to_bytes(SIZE, "little")
    assert scheduler.schedule(throttle_prefills=True) == (scheduled, True)
    memory[:] = bytes(SIZE)
    assert scheduler.schedule() == (1000, False)


def test_a_scheduler_that_cannot_be_limited_ignores_the_memory():
    memory = mmap.mmap(-1, SIZE)
    memory[:] = (100).to_bytes(SIZE, "little")
    scheduler = limited(Scheduler, memory)(vllm_config=config(enable_chunked_prefill=False), running=[ANSWER])
    assert scheduler.schedule() == (1000, False)
