"""The core is killed or stopped at every moment: each client gets its answer or one error.

A stand-in takes the place of a real core (`support/core.py`). tests/vllm has the same with vLLM's.
"""

import signal

import anyio
import pytest
from quiescence import check_quiescent
from support.core_engine import CoreEngine
from support.processes import gone
from support.requests import endless

from llmserve import (
    EngineDead,
    EngineManager,
    EngineRestarted,
    GenerationRequest,
    LLMServeError,
    ManagerConfig,
    RestartConfig,
    Sampling,
    State,
)
from llmserve.engines.simulated.engine import SimulatedConfig

# Bounds of waits that end much earlier, by an event.
PATIENCE = 60
# A core that a busy machine keeps from its steps for so long is restarted once more, which loses
# nothing either.
STALL_SECONDS = 1.0
DEATHS = [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGSTOP, id="stopped")]


@pytest.fixture
def anyio_backend():
    return "asyncio"


def short(name):
    return GenerationRequest("The capital of France is", request_id=name, sampling=Sampling(max_tokens=8, temperature=0, ignore_eos=True))


def config(sent, *, most, **more):
    stall = STALL_SECONDS if sent == signal.SIGSTOP else None
    restart = RestartConfig(most=most, first_pause=0.05, stall_timeout=stall, start_timeout=more.pop("start_timeout", PATIENCE))
    return ManagerConfig(restart=restart, drain_timeout=PATIENCE, **more)


class Clients:
    """Requests of one stream that is being read, and of four whole answers."""

    def __init__(self, manager, tasks):
        self._manager, self._tasks = manager, tasks
        self.ends = {}

    async def begin(self, core):
        """Begin them; the core is stopped once the stream has begun, so it answers no other request."""
        begun = anyio.Event()
        self._tasks.start_soon(self._read, begun)
        await begun.wait()
        core.suspend()
        for number in range(4):
            self._tasks.start_soon(self._ask, f"unread {number}")
        # On a very busy machine a core that hangs may be replaced before.
        while self._manager.statistics().running < 5 and not self.ends:
            await anyio.sleep(0.01)

    async def _read(self, begun):
        try:
            async with self._manager.stream(endless("read")) as stream:
                async for _ in stream:
                    begun.set()
        except LLMServeError as error:
            self.ends["read"] = type(error)

    async def _ask(self, name):
        try:
            self.ends[name] = (await self._manager.generate(short(name))).text
        except LLMServeError as error:
            self.ends[name] = type(error)

    async def all_ended(self):
        while len(self.ends) < 5:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("sent", DEATHS)
@pytest.mark.parametrize("most", [pytest.param(9, id="restarts"), pytest.param(0, id="no restart")])
@pytest.mark.parametrize("drains", [False, True], ids=["serving", "draining"])
async def test_each_request_gets_its_answer_or_one_error(sent, most, drains):
    """A stream that has begun gets an error; a restart hides the death from requests that are unread."""
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            engine = CoreEngine()
            async with EngineManager(engine, config(sent, most=most)) as manager:
                expected = (await manager.generate(short("before"))).text
                core, clients = engine.core, Clients(manager, tasks)
                await clients.begin(core)
                if drains:
                    tasks.start_soon(end_when_draining, manager, core, sent)
                else:
                    end(core, sent)
                    await clients.all_ended()
                    await still_serves(manager, expected) if most else await serves_no_more(manager)
    unread = [expected if most else EngineDead] * 4
    assert clients.ends == {"read": EngineRestarted if most else EngineDead} | {
        f"unread {number}": end for number, end in enumerate(unread)
    }
    assert manager.state is State.STOPPED
    assert engine.hung == 0
    check_quiescent(manager)
    await gone(core)


@pytest.mark.parametrize("sent", DEATHS)
@pytest.mark.parametrize("most", [pytest.param(9, id="restarts"), pytest.param(0, id="no restart")])
async def test_a_vector_comes_from_the_next_core_or_is_one_error(sent, most):
    ends: dict[int, object] = {}

    async def ask(name):
        try:
            ends[name] = (await manager.embed(f"text {name}")).data
        except LLMServeError as error:
            ends[name] = type(error)

    with anyio.fail_after(PATIENCE):
        engine = CoreEngine()
        async with EngineManager(engine, config(sent, most=most)) as manager, anyio.create_task_group() as tasks:
            expected = [(await manager.embed(f"text {name}")).data for name in range(4)]
            core = engine.core
            core.suspend()
            for name in range(4):
                tasks.start_soon(ask, name)
            # On a very busy machine a core that hangs may be replaced before.
            while manager.statistics().running < 4 and not ends:
                await anyio.sleep(0.01)
            end(core, sent)
            while len(ends) < 4:
                await anyio.sleep(0.01)
            if most:
                assert [ends[name] for name in range(4)] == expected
            else:
                assert set(ends.values()) == {EngineDead}
            check_quiescent(manager)
    await gone(core)


def end(core, sent):
    """Kill the core, or leave it as it is, because it has been stopped."""
    if sent == signal.SIGKILL:
        core.kill()


async def end_when_draining(manager, core, sent):
    while manager.state is not State.DRAINING:
        await anyio.lowlevel.checkpoint()
    end(core, sent)


async def still_serves(manager, expected):
    assert manager.statistics().restarts >= 1
    assert (await manager.generate(short("after"))).text == expected
    check_quiescent(manager)


async def serves_no_more(manager):
    while manager.state is not State.FAILED:
        await anyio.sleep(0.01)
    with pytest.raises(EngineDead):
        await manager.generate(short("after"))
    with pytest.raises(EngineDead):
        manager.check_health()


async def test_a_request_in_every_core_that_dies_is_given_up():
    """It may be the cause of the deaths."""
    deaths = 0

    def seen(core):
        nonlocal deaths
        deaths += 1

    with anyio.fail_after(PATIENCE):
        engine = CoreEngine(launched=seen)
        async with EngineManager(engine, config(signal.SIGKILL, most=9)) as manager, anyio.create_task_group() as tasks:
            tasks.start_soon(given_up, manager, tasks.cancel_scope)
            while True:
                if engine.core is not None and manager.statistics().engine.running:
                    engine.core.kill()
                await anyio.sleep(0.01)


async def given_up(manager, scope):
    with pytest.raises(EngineRestarted):
        await manager.generate(endless("cause"))
    scope.cancel()


@pytest.mark.parametrize("sent", DEATHS)
async def test_a_core_that_dies_in_its_first_start_is_an_error_of_the_start(sent):
    launched = []

    def begin_badly(core):
        launched.append(core)
        core.send_signal(sent)

    with anyio.fail_after(PATIENCE), pytest.raises(EngineDead):
        async with EngineManager(CoreEngine(launched=begin_badly), config(sent, most=9, start_timeout=1.0)):
            pass
    (core,) = launched
    await gone(core)


@pytest.mark.parametrize("sent", DEATHS)
async def test_a_core_that_dies_in_a_later_start_is_followed_by_another(sent):
    launched = []

    def begin_badly_at_second(core):
        launched.append(core)
        if len(launched) == 2:
            core.send_signal(sent)

    engine = CoreEngine(SimulatedConfig(), launched=begin_badly_at_second)
    with anyio.fail_after(PATIENCE):
        # Each start of a stand-in takes 0.3 s on a quiet machine.
        async with EngineManager(engine, config(sent, most=9, start_timeout=5.0)) as manager, anyio.create_task_group() as tasks:
            expected = (await manager.generate(short("before"))).text
            clients = Clients(manager, tasks)
            await clients.begin(engine.core)
            engine.core.kill()
            await clients.all_ended()
            assert clients.ends == {"read": EngineRestarted, **{f"unread {number}": expected for number in range(4)}}
            assert manager.statistics().restarts == len(launched) - 1 >= 2
    for core in launched:
        await gone(core)
