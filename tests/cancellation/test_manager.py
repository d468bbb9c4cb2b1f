"""Every ending at every suspension point of `stream()` and `generate()`: no leaks, one end each."""

import asyncio
import itertools
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from cancellation.interrupt import Reached, interrupted
from quiescence import Audit, AuditedEngine, check_quiescent
from trio.testing import MockClock

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.openai.fan_out import generate_choices, open_choices
from llmserve import (
    AdmissionConfig,
    CancellationToken,
    EngineDead,
    EngineError,
    EngineManager,
    GenerationRequest,
    LLMServeError,
    ManagerConfig,
    RestartConfig,
    Sampling,
    Unavailable,
)
from llmserve.engines.simulated.engine import SimulatedConfig

SIMULATED = SimulatedConfig(abort_seconds=0.01, start_seconds=0.05, max_model_len=256)
TOKENS = 3


def wanted(name="r", **more):
    return GenerationRequest("hello", request_id=name, sampling=Sampling(max_tokens=TOKENS, ignore_eos=True), **more)


# The actions of a caller. Each gets the manager and a token.


async def whole(manager, token):
    return (await manager.generate(wanted(), token)).token_ids


async def streamed(manager, token):
    async with manager.stream(wanted(), token) as stream:
        return [delta async for delta in stream]


async def left_early(manager, token):
    async with manager.stream(wanted(), token) as stream:
        await anext(stream)


async def with_a_deadline(manager, token):
    return await manager.generate(wanted(deadline=0.1), token)


async def embedded(manager, token):
    return (await manager.embed("hello", token, request_id="r")).data


async def four_choices(manager, token):
    return await generate_choices(manager, [wanted(f"r{number}") for number in range(4)])


async def four_streams(manager, token):
    async with open_choices(manager, [wanted(f"r{number}") for number in range(4)]) as streams:
        news = anyio.Event()

        def tell():
            news.set()

        for stream in streams:
            stream.notify(tell)
        while not all(stream.ended for stream in streams):
            await news.wait()
            news = anyio.Event()
            for stream in streams:
                stream.take()
                stream.raise_if_failed()


ALONE = [whole, streamed, left_early, with_a_deadline, embedded]
# These callers suspend once, and wait for tasks that do the work. They are interrupted at every
# moment of it.
TOGETHER = [four_choices, four_streams]
MOMENT = 2.5e-4


async def slow_tokenizer(engine):
    """A tokenizer that suspends."""
    tokenize = engine.tokenize

    async def slow(request):
        await anyio.sleep(0.001)
        return await tokenize(request)

    engine.tokenize = slow


class Rig:
    """A manager, one caller and one event that happens to it."""

    def __init__(self, caller, *, queued, restarts):
        self.caller = caller
        self.queued = queued
        # Four choices need four slots, and the others three.
        self.config = ManagerConfig(
            admission=AdmissionConfig(max_running=4, max_waiting=8),
            restart=RestartConfig(most=restarts, first_pause=0.01),
            cleanup_timeout=1.0,
            drain_timeout=10.0,
        )

    async def run(self, points, fault, moment=None):
        """Return how often the fault happened.

        It happens at the caller's suspensions `points`, or the given seconds after the beginning.
        """
        self.stopped = fault is everything_cancelled
        engine, audit = AuditedEngine(SIMULATED), Audit()
        await slow_tokenizer(engine)
        async with EngineManager(engine, self.config, [audit]) as manager:
            before = len(asyncio.all_tasks()) if self.native else 0
            async with anyio.create_task_group() as tasks:
                if self.queued:
                    for number in range(4):
                        tasks.start_soon(self._neighbour, manager, f"before {number}")
                    await anyio.wait_all_tasks_blocked()
                token = CancellationToken()
                reached = await self._call(manager, points, fault, moment, token)
            assert "0 callbacks" in repr(token)
            await self._settled(manager)
            check_quiescent(manager, audit)
            if self.native:
                assert len(asyncio.all_tasks()) <= before
            # The next request is served, unless the engine has died permanently.
            if manager.state == "ready":
                assert len((await manager.generate(wanted("after"))).token_ids) == TOKENS
        return reached

    native = True
    # Whether the fault ends everything.
    stopped = False

    async def _neighbour(self, manager, name):
        try:
            assert len((await manager.generate(wanted(name))).token_ids) == TOKENS
        except Unavailable:
            assert self.stopped
        except EngineDead:
            assert manager.state == "failed"

    async def _call(self, manager, points, fault, moment, token):
        scope = anyio.CancelScope()
        task: asyncio.Task[Any] | None = None
        reached = Reached(lambda: fault(manager, token, task, scope))
        if not self.native:
            with scope:
                await self._caught(manager, token, points, reached)
            return reached.times
        task = asyncio.create_task(self._caught(manager, token, points, reached))
        await asyncio.wait([task], timeout=moment)
        if moment is not None and not task.done():
            reached()
            await asyncio.wait([task])
        return reached.times

    async def _caught(self, manager, token, points, reached):
        # Any other exception is a defect, and fails the test.
        with suppress(LLMServeError, asyncio.CancelledError):
            await interrupted(self.caller(manager, token), points, reached)

    @staticmethod
    async def _settled(manager):
        """Wait for the remaining cleanup, which takes a bounded time."""
        with anyio.fail_after(20.0):
            while manager.statistics().open or manager.state == "restarting":
                await anyio.sleep(0.001)


class ScopeRig(Rig):
    """The same in one task, with an anyio scope around the caller."""

    native = False


def sweep(rig, fault, backend="asyncio", options=None):
    """Interrupt at every single suspension; return their number."""
    options = options or {"loop_factory": VirtualLoop}
    points = 0
    while anyio.run(rig.run, {points + 1}, fault, backend=backend, backend_options=options):
        points += 1
    return points


def sweep_moments(rig, fault):
    """Interrupt at every moment from beginning to end; return their number."""
    moments = 0
    while anyio.run(rig.run, (), fault, moments * MOMENT, backend_options={"loop_factory": VirtualLoop}):
        moments += 1
    return moments


def cancelled(manager, token, task, scope):
    task.cancel()


def scope_cancelled(manager, token, task, scope):
    scope.cancel()


def token_cancelled(manager, token, task, scope):
    token.cancel("enough")


def engine_died(manager, token, task, scope):
    manager.engine.kill()


def everything_cancelled(manager, token, task, scope):
    manager.cancel_all("stopping")


def engine_failed_it(manager, token, task, scope):
    engine = manager.engine
    for sequence in [*engine.scheduler.running, *engine.scheduler.waiting]:
        if sequence.id.startswith("r"):
            engine.scheduler.drop(sequence.id)
            sequence.sink.fail(EngineError("bad luck"))


FAULTS = [cancelled, token_cancelled, engine_died, everything_cancelled, engine_failed_it]


@pytest.mark.parametrize("queued", [False, True], ids=["at once", "queued"])
@pytest.mark.parametrize("caller", ALONE)
@pytest.mark.parametrize("fault", FAULTS)
def test_at_every_suspension(caller, fault, queued):
    # Tokenising, submitting and at least one token are separate awaits.
    assert sweep(Rig(caller, queued=queued, restarts=5), fault) >= 3


@pytest.mark.parametrize("queued", [False, True], ids=["at once", "queued"])
@pytest.mark.parametrize("caller", TOGETHER)
@pytest.mark.parametrize("fault", FAULTS)
def test_at_every_moment_of_several_choices(caller, fault, queued):
    assert sweep_moments(Rig(caller, queued=queued, restarts=5), fault) >= 20


@pytest.mark.parametrize("caller", ALONE)
def test_the_engine_dies_permanently_at_every_suspension(caller):
    assert sweep(Rig(caller, queued=True, restarts=0), engine_died) >= 3


@pytest.mark.parametrize("queued", [False, True], ids=["at once", "queued"])
@pytest.mark.parametrize("caller", ALONE)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_scope_is_cancelled_at_every_suspension(caller, backend, queued):
    options = {"clock": MockClock(autojump_threshold=0)} if backend == "trio" else None
    assert sweep(ScopeRig(caller, queued=queued, restarts=5), scope_cancelled, backend, options) >= 3


@pytest.mark.parametrize("caller", ALONE)
def test_cancelled_again_while_it_gives_everything_back(caller):
    """A second cancellation ends a shielded scope before its cleanup is complete, but no task."""
    rig = Rig(caller, queued=True, restarts=5)
    for first in itertools.count(1):
        for second in itertools.count(first + 1):
            times = anyio.run(rig.run, {first, second}, cancelled, backend_options={"loop_factory": VirtualLoop})
            if times < 2:
                break
        if times == 0:
            break
    assert first > 3
