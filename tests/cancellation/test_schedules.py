"""Concurrent requests, events on them, and any order of their tasks: no leaks, one end each."""

import asyncio
import random
from contextlib import suppress

import anyio
import pytest
from cancellation.schedules import ShuffledLoop
from quiescence import Audit, AuditedEngine, check_quiescent

from frontends.openai.fan_out import generate_choices
from llmserve import (
    AdmissionConfig,
    CancellationToken,
    EngineManager,
    GenerationRequest,
    LLMServeError,
    ManagerConfig,
    RestartConfig,
    Sampling,
)
from llmserve.engines.simulated.engine import SimulatedConfig

SIMULATED = SimulatedConfig(abort_seconds=0.002, start_seconds=0.02, max_model_len=256, max_num_seqs=4)
CONFIG = ManagerConfig(
    admission=AdmissionConfig(max_running=3, max_waiting=3, max_wait=0.5),
    restart=RestartConfig(most=50, first_pause=0.01),
    drain_timeout=5.0,
)
SEEDS = 1000


class Story:
    """Ten requests and their events, on one to three engines, from a seed."""

    def __init__(self, seed):
        self.rng = random.Random(f"story {seed}")
        self.engines = [AuditedEngine(SIMULATED) for _ in range(1 + seed % 3)]

    async def run(self):
        audit = Audit()
        async with EngineManager(self.engines, CONFIG, [audit]) as manager:
            async with asyncio.TaskGroup() as tasks:
                for number in range(10):
                    tasks.create_task(self._client(manager, number))
                for engine in self.engines:
                    if self.rng.random() < 0.3:
                        tasks.create_task(self._kill(engine))
                if self.rng.random() < 0.2:
                    tasks.create_task(self._restart(manager))
            with anyio.fail_after(20):
                while manager.statistics().open or not all(state.up for state in manager.statistics().engines):
                    await anyio.sleep(0.001)
            check_quiescent(manager, audit)
            assert sum(audit.ends.values()) >= 10
            assert len((await manager.generate("after", sampling=Sampling(max_tokens=2, ignore_eos=True))).token_ids) == 2

    async def _client(self, manager, number):
        rng = random.Random(self.rng.random())
        await anyio.sleep(rng.choice((0, 0, 0.005, 0.01)))
        token = CancellationToken()
        deadline = rng.choice((None, None, 0.01, 0.03))
        wanted = GenerationRequest(
            f"prompt {number % 3}",
            request_id=f"r{number}",
            sampling=Sampling(max_tokens=rng.randint(1, 6), ignore_eos=True),
            deadline=deadline,
        )
        caller = rng.choice((self._whole, self._part, self._choices))
        task = asyncio.create_task(caller(manager, wanted, token, rng))
        match rng.randrange(4):
            case 0:
                await asyncio.wait([task], timeout=rng.random() * 0.05)
                token.cancel("enough")
            case 1:
                await asyncio.wait([task], timeout=rng.random() * 0.05)
                task.cancel()
            case 2:
                # From a callback, not from a task.
                asyncio.get_running_loop().call_later(rng.random() * 0.05, token.cancel, "enough")
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _whole(self, manager, wanted, token, rng):
        with suppress(LLMServeError):
            assert len((await manager.generate(wanted, token)).token_ids) == wanted.sampling.max_tokens

    async def _part(self, manager, wanted, token, rng):
        """Check that the tokens are consecutive tokens of one answer, possibly not all."""
        with suppress(LLMServeError):
            async with manager.stream(wanted, token) as stream:
                for _ in range(rng.randint(0, 4)):
                    if (await anext(stream, None)) is None:
                        break

    async def _choices(self, manager, wanted, token, rng):
        requests = [GenerationRequest("choices", request_id=f"{wanted.request_id}-{n}", sampling=wanted.sampling) for n in range(2)]
        with suppress(LLMServeError):
            await generate_choices(manager, requests)

    async def _kill(self, engine):
        await anyio.sleep(self.rng.random() * 0.05)
        engine.kill()

    async def _restart(self, manager):
        await anyio.sleep(self.rng.random() * 0.05)
        await manager.restart_engines()


def run(seed):
    story = Story(seed % 50)
    with asyncio.Runner(loop_factory=lambda: ShuffledLoop(seed)) as runner:
        runner.run(story.run())


@pytest.mark.parametrize("part", range(10))
def test_any_order_of_tasks(part):
    """Run fifty stories, each in twenty orders."""
    for seed in range(part * SEEDS // 10, (part + 1) * SEEDS // 10):
        try:
            run(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_a_seed_is_an_order_and_another_one_another():
    """Only tasks are ordered: task groups iterate over sets of tasks, whose order is by address."""

    async def six():
        order = []

        async def walk(number):
            for _ in range(3):
                await asyncio.sleep(0)
                order.append(number)

        tasks = [asyncio.create_task(walk(number)) for number in range(6)]
        for task in tasks:
            await task
        return tuple(order)

    def order_of(seed):
        with asyncio.Runner(loop_factory=lambda: ShuffledLoop(seed)) as runner:
            return runner.run(six())

    assert order_of(7) == order_of(7)
    assert len({order_of(seed) for seed in range(20)}) > 10
