"""Several engines behind one manager: each dies, hangs and restarts alone, and no request is lost."""

import random

import anyio
import attrs
import pytest
from anyio import wait_all_tasks_blocked
from engines import ScriptedEngine
from quiescence import check_quiescent

from llmserve import (
    SLO,
    AdmissionConfig,
    ConfigurationError,
    Delta,
    EngineDead,
    EngineManager,
    EngineRestarted,
    FixedLimit,
    GenerationRequest,
    ManagerConfig,
    RestartConfig,
    State,
    Unavailable,
)
from llmserve.admission import build_admission
from llmserve.engines.simulated.engine import Fault, SimulatedConfig, SimulatedEngine

pytestmark = pytest.mark.anyio

START = 30.0
CONFIG = ManagerConfig(admission=AdmissionConfig(max_running=2, max_waiting=2, max_wait=5.0))


@pytest.fixture
def engines():
    return [ScriptedEngine(start_seconds=START) for _ in range(2)]


@pytest.fixture
async def manager(engines):
    async with EngineManager(engines, CONFIG) as manager:
        yield manager
        await wait_all_tasks_blocked()
        check_quiescent(manager)
        assert not any(engine.held for engine in engines)


def request(name):
    return GenerationRequest("hello", request_id=name)


class Callers:
    """Requests of whole answers, each in its own task; `answers` and `errors` by the request's name."""

    def __init__(self, manager, tasks):
        self.answers, self.errors = {}, {}
        self._manager, self._tasks = manager, tasks

    async def start(self, *names):
        for name in names:
            self._tasks.start_soon(self._run, name)
            await wait_all_tasks_blocked()

    async def _run(self, name):
        try:
            self.answers[name] = (await self._manager.generate(request(name))).text
        except Exception as error:
            self.errors[name] = error


async def settle():
    """Let all tasks go on, also those that others start, while no time passes."""
    for _ in range(5):
        await wait_all_tasks_blocked()


def places(engines):
    return [sorted(engine.held) for engine in engines]


async def up(manager, engine, starts=2):
    """Wait until an engine has been started again."""
    while engine.starts < starts or engine.death is None:
        await anyio.sleep(1.0)
    await settle()


async def test_requests_are_spread_over_the_engines_and_their_slots_add_up(manager, engines):
    async with anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start(*"abcdef")
        assert [len(place) for place in places(engines)] == [2, 2]
        assert (manager.statistics().running, manager.statistics().waiting) == (4, 2)
        assert manager.statistics().admission.limit == 4
        for engine in engines:
            for name in list(engine.held):
                engine.finish(name, f"by {engines.index(engine)}")
        await settle()
        # The two that waited got the free slots.
        for engine in engines:
            for name in list(engine.held):
                engine.finish(name)
    assert sorted(callers.answers) == list("abcdef")


async def test_the_death_of_one_engine_moves_its_requests_at_once_and_disturbs_no_other(manager, engines):
    async with anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start("a", "b")
        dead, other = sorted(engines, key=lambda engine: "a" not in engine.held)
        began = anyio.current_time()
        dead.death.set()
        await settle()
        assert other.submitted == ["b", "a"]
        assert (manager.state, dead.starts) == (State.READY, 1)
        # Its slots left the sum, so the next request waits.
        assert manager.statistics().admission.limit == 2
        await callers.start("c")
        assert manager.statistics().waiting == 1
        other.finish("a", "moved")
        other.finish("b", "stayed")
        await settle()
        other.finish("c")
        await settle()
        assert anyio.current_time() < began + START
        assert callers.answers == {"a": "moved", "b": "stayed", "c": "x"}
        await up(manager, dead)
        assert manager.statistics().admission.limit == 4
        assert [state.restarts for state in manager.statistics().engines] == [int(engine is dead) for engine in engines]


async def test_a_request_does_not_wait_for_the_removal_of_its_engine_s_remains(manager, engines):
    async with anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start("a", "b")
        dead, other = sorted(engines, key=lambda engine: "a" not in engine.held)
        # The engine tells its requests of its death; its `run()` ends later.
        dead.sinks["a"].fail(EngineDead("killed"))
        await settle()
        assert other.submitted == ["b", "a"]
        dead.death.set()
        await settle()
        assert other.submitted == ["b", "a"]
        for name in "ab":
            other.finish(name)
        await up(manager, dead)
    assert sorted(callers.answers) == ["a", "b"]


async def test_a_stream_that_was_read_ends_with_its_engine_and_the_others_go_on(manager, engines):
    async with manager.stream(request("a")) as first, manager.stream(request("b")) as second:
        dead, other = sorted(engines, key=lambda engine: "a" not in engine.held)
        dead.sinks["a"].put(Delta("a", (1,)))
        other.sinks["b"].put(Delta("b", (1,)))
        assert (await anext(first)).text == "a"
        assert (await anext(second)).text == "b"
        dead.death.set()
        with pytest.raises(EngineRestarted):
            await anext(first)
        other.finish("b", "c")
        assert (await anext(second)).text == "c"
    await up(manager, dead)


async def test_without_any_engine_requests_wait_and_go_to_the_first_that_is_back(manager, engines):
    engines[1].start_seconds = START / 2
    async with anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start("a", "b")
        for engine in engines:
            engine.death.set()
        while manager.state is State.READY:
            await anyio.sleep(0.1)
        with pytest.raises(Unavailable) as refused:
            await manager.generate(request("c"))
        assert refused.value.retry_after <= START / 2 + 2
        await up(manager, engines[1])
        assert manager.state is State.READY
        assert places(engines) == [[], ["a", "b"]]
        for name in "ab":
            engines[1].finish(name)
        await up(manager, engines[0])
    assert sorted(callers.answers) == ["a", "b"]


async def test_an_engine_that_is_not_restarted_leaves_the_others_serving_and_the_last_one_ends_the_manager(engines):
    manager = EngineManager(engines, ManagerConfig(restart=RestartConfig(most=0)))
    async with manager, anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start("a", "b")
        dead, other = sorted(engines, key=lambda engine: "a" not in engine.held)
        dead.death.set()
        await settle()
        assert manager.state is State.READY
        assert sorted(other.held) == ["a", "b"]
        manager.check_health()
        other.death.set()
        await settle()
        assert manager.state is State.FAILED
        assert all(isinstance(error, EngineDead) for error in callers.errors.values())
        assert sorted(callers.errors) == ["a", "b"]


async def test_an_engine_that_another_process_starts_may_die_while_it_is_joined(engines):
    engines[0].fails_to_start = {1, 2}
    engines[1].fails_to_start = {1}
    async with EngineManager(engines, ManagerConfig(restart=RestartConfig(start_all=False))) as manager:
        await up(manager, engines[0], starts=3)
        await up(manager, engines[1])
        assert all(state.up for state in manager.statistics().engines)
        assert manager.state is State.READY


async def test_an_engine_that_hangs_is_killed_alone():
    hung = SimulatedEngine(SimulatedConfig(faults=(Fault(step=2, kind="hang"),)))
    well = SimulatedEngine(SimulatedConfig())
    config = ManagerConfig(restart=RestartConfig(stall_timeout=4.0))
    async with EngineManager([hung, well], config) as manager, anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start(*"abcd")
        while len(callers.answers) < 4 or not all(state.up for state in manager.statistics().engines):
            await anyio.sleep(0.5)
        assert [state.restarts for state in manager.statistics().engines] == [1, 0]
        check_quiescent(manager)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_rolling_restart_loses_nothing(count):
    engines = [SimulatedEngine(SimulatedConfig(start_seconds=2.0)) for _ in range(count)]
    config = ManagerConfig(admission=AdmissionConfig(max_waiting=1000))
    done, refused = 0, 0
    async with EngineManager(engines, config) as manager, anyio.create_task_group() as tasks:

        async def client(number):
            nonlocal done, refused
            for turn in range(40):
                try:
                    await manager.generate(GenerationRequest("hello", request_id=f"{number}.{turn}"), max_tokens=20)
                    done += 1
                except Unavailable:
                    refused += 1
                    await anyio.sleep(0.1)

        for number in range(8):
            tasks.start_soon(client, number)
        await anyio.sleep(0.3)
        await manager.restart_engines()
        assert [state.restarts for state in manager.statistics().engines] == [1] * count
        assert all(state.up for state in manager.statistics().engines)
    assert done + refused == 320
    # A single engine refuses the requests that arrive while it starts again, and fails none.
    assert not refused or count == 1


async def test_two_rolling_restarts_do_not_overlap(engines):
    async with EngineManager(engines, CONFIG) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(manager.restart_engines)
        tasks.start_soon(manager.restart_engines)
        for _ in range(10):
            await anyio.sleep(START / 2)
            assert sum(state.up for state in manager.statistics().engines) >= 1
    assert [engine.starts for engine in engines] == [3, 3]


async def test_an_engine_that_dies_in_its_rolling_restart_is_started_again(engines):
    engines[0].fails_to_start = {2}
    async with EngineManager(engines, CONFIG) as manager:
        await manager.restart_engines()
        assert [state.up for state in manager.statistics().engines] == [True, True]
    assert [engine.starts for engine in engines] == [3, 2]


async def test_a_rolling_restart_goes_on_without_an_engine_that_dies_for_good_in_it(engines):
    config = attrs.evolve(CONFIG, restart=RestartConfig(most=0))
    async with EngineManager(engines, config) as manager, anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start("a", "b")
        ended = anyio.Event()

        async def restart():
            await manager.restart_engines()
            ended.set()

        tasks.start_soon(restart)
        await settle()
        engines[0].death.set()
        await settle()
        for name in "ab":
            engines[1].finish(name)
        with anyio.fail_after(10 * START):
            await ended.wait()
            await manager.restart_engines()
        assert [state.up for state in manager.statistics().engines] == [False, True]
        assert [engine.starts for engine in engines] == [1, 3]


async def test_a_rolling_restart_ends_with_its_manager(engines):
    ended = anyio.Event()

    async def restart(manager):
        await manager.restart_engines()
        ended.set()

    async with anyio.create_task_group() as tasks:
        async with EngineManager(engines, CONFIG) as manager:
            tasks.start_soon(restart, manager)
            await anyio.sleep(START / 2)
        with anyio.fail_after(10 * START):
            await ended.wait()
            await manager.restart_engines()


async def test_a_single_engine_refuses_requests_while_it_drains_for_its_restart(engines):
    async with EngineManager(engines[0], CONFIG) as manager, anyio.create_task_group() as tasks:
        callers = Callers(manager, tasks)
        await callers.start("a")
        tasks.start_soon(manager.restart_engines)
        await settle()
        with pytest.raises(Unavailable, match="restarted"):
            manager.check_health()
        await callers.start("b")
        assert isinstance(callers.errors["b"], Unavailable)
        engines[0].finish("a")
        await up(manager, engines[0])
        assert manager.state is State.READY
        assert callers.answers == {"a": "x"}


async def test_the_figures_of_all_engines_add_up():
    engines = [SimulatedEngine(SimulatedConfig(max_num_seqs=4)) for _ in range(3)]
    async with EngineManager(engines) as manager:
        async with anyio.create_task_group() as tasks:
            callers = Callers(manager, tasks)
            await callers.start(*(f"r{number}" for number in range(30)))
        statistics = manager.statistics()
        assert len(callers.answers) == 30
        assert all(state.engine.generation_tokens for state in statistics.engines)
        for name in ("generation_tokens", "prompt_tokens", "steps", "busy_seconds"):
            assert getattr(statistics.engine, name) == sum(getattr(state.engine, name) for state in statistics.engines)


async def test_a_request_with_a_known_beginning_goes_to_the_engine_that_has_it():
    engines = [SimulatedEngine(SimulatedConfig(num_blocks=4096)) for _ in range(4)]
    prompts = [tuple(random.Random(seed).choices(range(250), k=256)) for seed in range(8)]
    async with EngineManager(engines) as manager:
        for turn in range(4):
            for prompt in prompts:
                await manager.generate((*prompt, *range(turn)), max_tokens=4)
        hits = manager.statistics().engine.prefix_cache_hits
    # Each prompt comes four times, and only its first turn is computed.
    assert hits >= 0.9 * 3 * 256 * len(prompts)


async def test_a_policy_counts_for_each_engine(engines):
    async with EngineManager(engines, admission=FixedLimit(1)) as manager:
        assert manager.statistics().admission.limit == 2
        async with anyio.create_task_group() as tasks:
            callers = Callers(manager, tasks)
            await callers.start(*"abc")
            assert [len(place) for place in places(engines)] == [1, 1]
            for _ in range(2):
                for engine in engines:
                    for name in list(engine.held):
                        engine.finish(name)
                await settle()
        assert len(callers.answers) == 3


@pytest.mark.parametrize(("built_for", "count"), [(1, 2), (3, 2), (2, 1)])
def test_an_admission_for_another_number_of_engines_is_refused(built_for, count):
    admission = build_admission(AdmissionConfig(max_running=2), SLO(), 2, engines=built_for)
    with pytest.raises(ConfigurationError, match=f"for {built_for} of {count} engines"):
        EngineManager([ScriptedEngine() for _ in range(count)], admission=admission)


def test_a_list_of_engines_is_checked():
    with pytest.raises(TypeError, match="the list is empty"):
        EngineManager([])
    engine = ScriptedEngine()
    with pytest.raises(TypeError, match="an object of its own"):
        EngineManager([engine, engine])
    with pytest.raises(TypeError, match="must be an engine"):
        EngineManager([engine, "bundled"])  # type: ignore[list-item]  # that is the error


@pytest.mark.parametrize("count", [0, -1, True, "2", 1.5])
def test_the_number_of_engines_is_checked(count):
    with pytest.raises(ConfigurationError, match="engines must be a whole number of at least 1"):
        EngineManager.open(engine="simulated", engines=count)


async def test_a_rolling_restart_leaves_the_only_engine_that_is_up(engines):
    async with EngineManager(engines, CONFIG) as manager, anyio.create_task_group() as tasks:
        engines[1].death.set()
        await settle()
        assert [state.up for state in manager.statistics().engines] == [True, False]
        tasks.start_soon(manager.restart_engines)
        seen = set()
        for _ in range(200):
            await anyio.sleep(1.0)
            seen.add(manager.state)
        assert seen == {State.READY}
    assert [engine.starts for engine in engines] == [2, 3]
