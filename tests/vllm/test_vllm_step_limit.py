"""A smaller maximum of tokens in a step reaches the scheduler of a real engine that is up."""

from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from contracts.engine_contract import PATIENCE, CollectingSink

from llmserve import GenerationRequest, Sampling
from llmserve.engines.vllm.engine import VLLMEngine
from llmserve.engines.vllm.scheduling.step_limit import StepLimit
from llmserve.engines.vllm.shared_core import VLLMCore
from llmserve.runtime.starting import start_in_thread

pytestmark = pytest.mark.nightly

PROMPT = 1500


@asynccontextmanager
async def running(engine):
    async with anyio.create_task_group() as tasks:
        await tasks.start(engine.run)
        yield engine
        tasks.cancel_scope.cancel()


async def steps_of_prompt(engine, name, beside_an_answer=True):
    """Return the number of steps that a prompt takes that the cache does not have."""
    answer, first = CollectingSink(), CollectingSink()
    with anyio.fail_after(PATIENCE):
        if beside_an_answer:
            sampling = Sampling(max_tokens=1000, ignore_eos=True)
            await engine.submit(f"{name} answer", await engine.tokenize(GenerationRequest("Once upon a time")), sampling, 0, answer)
            await answer.progress.wait()
        salt = sum(name.encode())
        prompt = await engine.tokenize(GenerationRequest(tuple((salt * 977 + 31 * place) % 20_000 + 100 for place in range(PROMPT))))
        before = engine.statistics().steps
        await engine.submit(name, prompt, Sampling(max_tokens=1), 0, first)
        await first.ended.wait()
        steps = engine.statistics().steps - before
        await engine.abort(f"{name} answer")
    assert first.error is None
    return steps


# A step is scheduled while another one runs, so that a prompt waits for one or two others.
WAIT = 3


async def test_a_limit_holds_beside_an_answer_and_again_after_a_restart():
    engine = VLLMEngine("bundled", {"enable_prefix_caching": False})
    engine.allow_step_limit()
    async with running(engine):
        assert engine.info.max_num_batched_tokens >= PROMPT
        assert engine.info.min_step_tokens == engine.info.max_num_seqs
        assert await steps_of_prompt(engine, "before") <= 1 + WAIT
        engine.limit_step(101)
        assert 15 <= await steps_of_prompt(engine, "limited") <= 15 + WAIT
        assert await steps_of_prompt(engine, "alone", beside_an_answer=False) <= 1 + WAIT
        engine.limit_step(301)
    async with running(engine):
        assert 5 <= await steps_of_prompt(engine, "again") <= 5 + WAIT
        engine.limit_step(100_000)
        assert await steps_of_prompt(engine, "whole") <= 1 + WAIT


async def test_each_of_two_cores_gets_its_part():
    engine = VLLMEngine("bundled", {"data_parallel_size": 2, "enable_prefix_caching": False})
    engine.allow_step_limit()
    async with running(engine):
        assert engine.info.min_step_tokens == engine.info.max_num_seqs
        engine.limit_step(202)
        # Both cores answer, so that the prompt is beside an answer in either.
        answers = [CollectingSink() for _ in range(4)]
        for number, answer in enumerate(answers):
            prompt = await engine.tokenize(GenerationRequest(f"Once upon a time, {number}"))
            await engine.submit(f"answer {number}", prompt, Sampling(max_tokens=1500, ignore_eos=True), 0, answer)
        with anyio.fail_after(PATIENCE):
            for answer in answers:
                await answer.progress.wait()
        before = [len(answer.deltas) for answer in answers]
        await steps_of_prompt(engine, "part", beside_an_answer=False)
        # Each answer has got a token from each step of its core, and the other core's steps are shorter.
        assert min(len(answer.deltas) - count for answer, count in zip(answers, before, strict=True)) >= 14
        for number in range(len(answers)):
            await engine.abort(f"answer {number}")


async def test_the_owner_of_a_shared_core_limits_it_for_all_clients():
    limit = StepLimit()
    limit.allow({})
    core = VLLMCore("bundled", {"enable_prefix_caching": False}, at_once=1, in_all=1, step_limit=limit)
    try:
        await start_in_thread(core.configure)
        assert core.min_step_tokens == core.batch[0]
        engine = VLLMEngine("bundled")

        async def connect():
            return core.client(0)

        engine.connect = connect
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(start_in_thread, core.launch, end=core.kill))
            async with running(engine):
                assert await steps_of_prompt(engine, "before") <= 1 + WAIT
                limit.set(101)
                assert 15 <= await steps_of_prompt(engine, "limited") <= 15 + WAIT
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(core.stop)
