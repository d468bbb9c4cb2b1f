"""The engine dies or hangs with requests in every state: none is lost or answered twice."""

from typing import Any

import anyio
import attrs
import pytest
from anyio import wait_all_tasks_blocked
from engines import ScriptedEngine
from quiescence import check_quiescent

from llmserve import (
    AdmissionConfig,
    CancellationToken,
    DeadlineExceeded,
    Delta,
    EngineDead,
    EngineError,
    EngineManager,
    EngineRestarted,
    GenerationRequest,
    ManagerConfig,
    Outcome,
    RequestCancelled,
    RestartConfig,
    Sampling,
    State,
    StructuredOutputs,
    Unavailable,
)
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine

pytestmark = pytest.mark.anyio

START = 30.0
CONFIG = ManagerConfig(admission=AdmissionConfig(max_running=2, max_waiting=2, max_wait=5.0))


@pytest.fixture
def engine():
    return ScriptedEngine(start_seconds=START)


@pytest.fixture
async def manager(engine):
    async with EngineManager(engine, CONFIG) as manager:
        yield manager
        check_quiescent(manager)
        assert not engine.held


def request(name="r", **more):
    return GenerationRequest("hello", request_id=name, **more)


async def ready(manager):
    while manager.state is not State.READY:
        await anyio.sleep(0.1)


async def die(manager, engine):
    engine.death.set()
    while manager.state is State.READY:
        await anyio.sleep(0.1)


async def restart(manager, engine):
    engine.death.set()
    await restart_seen(manager)


async def restart_seen(manager):
    while manager.state is State.READY:
        await anyio.sleep(0.1)
    await ready(manager)
    await wait_all_tasks_blocked()


class Caller:
    """Requests a whole answer in a separate task."""

    def __init__(self, manager, tasks, name="r", token=None, **more):
        self.answer = self.error = None

        async def run():
            try:
                self.answer = await manager.generate(request(name, **more), token)
            except Exception as error:
                self.error = error

        tasks.start_soon(run)


async def test_an_unread_request_gets_the_answer_of_the_next_engine(manager, engine):
    async with anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks)
        await wait_all_tasks_blocked()
        # The old answer had some tokens, which the caller has not read.
        engine.sinks["r"].put(Delta("old", (1,)))
        await restart(manager, engine)
        assert engine.submitted == ["r", "r"]
        engine.sinks["r"].put(Delta("new ", (2,)))
        engine.finish("r", "answer")
    assert caller.answer.text == "new answer"
    assert caller.answer.usage.completion_tokens == 2
    assert manager.statistics().restarts == 1


async def test_tokens_of_the_engine_that_is_gone_are_not_taken(manager, engine):
    async with anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks)
        await wait_all_tasks_blocked()
        late = engine.sinks["r"]
        await die(manager, engine)
        late.put(Delta("stale", (9,)))
        await ready(manager)
        await wait_all_tasks_blocked()
        engine.finish("r", "fresh")
    assert caller.answer.text == "fresh"


async def test_a_partly_read_request_fails_once_and_gets_no_tokens_of_another_engine(manager, engine):
    async with manager.stream(request()) as stream:
        engine.sinks["r"].put(Delta("a", (1,)))
        assert (await anext(stream)).text == "a"
        engine.sinks["r"].put(Delta("b", (2,)))
        engine.death.set()
        # The tokens before the error come first.
        assert (await anext(stream)).text == "b"
        with pytest.raises(EngineRestarted):
            await anext(stream)
        engine.sinks["r"].put(Delta("c", (3,)))
        with pytest.raises(EngineRestarted):
            await anext(stream)
    await ready(manager)
    assert engine.submitted == ["r"]


async def test_a_stream_of_which_nothing_was_read_begins_again(manager, engine):
    async with manager.stream(request()) as stream:
        engine.sinks["r"].put(Delta("old", (1,)))
        await restart(manager, engine)
        engine.finish("r", "new")
        assert [delta.text async for delta in stream] == ["new"]


async def test_a_waiting_request_keeps_its_position_and_its_patience(manager, engine):
    async with anyio.create_task_group() as tasks:
        callers = []
        for name in "abcd":
            callers.append(Caller(manager, tasks, name))
            await wait_all_tasks_blocked()
        assert manager.statistics().waiting == 2
        await anyio.sleep(3.0)
        # The restart takes six times as long as any patience. The manager cannot predict this,
        # because the first start took no time.
        await restart(manager, engine)
        assert sorted(engine.submitted[:2]) == sorted(engine.submitted[2:]) == ["a", "b"]
        engine.finish("a")
        await wait_all_tasks_blocked()
        assert engine.submitted[4:] == ["c"]
        # The last request has used up the two seconds that it had left.
        await anyio.sleep(2.1)
        engine.finish("b")
        engine.finish("c")
    assert [caller.answer is not None for caller in callers] == [True, True, True, False]
    refusal: Any = callers[3].error
    assert refusal.reason == "waited_too_long"


async def test_a_waiting_request_whose_patience_ends_before_the_engine_is_back_is_refused_at_once(engine):
    """The second death is the first with a known start time. Best-effort requests keep waiting."""
    config = attrs.evolve(CONFIG, admission=attrs.evolve(CONFIG.admission, max_running=1))
    async with EngineManager(engine, config) as manager, anyio.create_task_group() as tasks:
        await restart(manager, engine)
        told = []

        async def ask():
            with pytest.raises(Unavailable) as refused:
                await manager.generate(request("waits"))
            told.append((anyio.current_time(), refused.value.reason, refused.value.retry_after))

        async def ask_late():
            async with manager.stream(request("late", best_effort=True)):
                engine.finish("late")

        async with manager.stream(request("runs")):
            tasks.start_soon(ask)
            tasks.start_soon(ask_late)
            await wait_all_tasks_blocked()
            died = anyio.current_time()
            await die(manager, engine)
            await wait_all_tasks_blocked()
            ((when, reason, retry_after),) = told
            assert when - died < 1
            assert reason == "restarting"
            assert START <= retry_after <= START + 3
            await ready(manager)
    check_quiescent(manager)


async def test_a_newcomer_s_retry_time_is_when_the_engine_will_be_back(manager, engine):
    await die(manager, engine)
    assert manager.state is State.RESTARTING
    with pytest.raises(Unavailable) as refused:
        await manager.generate("x")
    assert refused.value.reason == "restarting"
    # The first pause plus the duration of the last start, which was 0.
    assert refused.value.retry_after == 1.0
    with pytest.raises(Unavailable):
        manager.check_health()
    await ready(manager)
    await die(manager, engine)
    with pytest.raises(Unavailable) as refused:
        await manager.generate("x")
    assert START < refused.value.retry_after <= START + 2.0
    await ready(manager)


async def test_a_death_in_the_middle_of_a_submit_is_outlived(engine):
    engine.submit_seconds = 1.0
    async with EngineManager(engine, CONFIG) as manager, anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks)
        await anyio.sleep(0.5)
        await restart(manager, engine)
        await anyio.sleep(2.0)
        engine.finish("r")
        await wait_all_tasks_blocked()
        assert caller.answer.text == "x"
        check_quiescent(manager)


async def test_a_request_in_three_engines_that_died_is_not_submitted_to_a_fourth(manager, engine):
    async with anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks)
        for _ in range(3):
            await ready(manager)
            await wait_all_tasks_blocked()
            await die(manager, engine)
        await wait_all_tasks_blocked()
    assert isinstance(caller.error, EngineRestarted)
    assert "3 times" in str(caller.error)
    assert engine.submitted == ["r"] * 3
    await ready(manager)


async def test_after_too_many_deaths_it_stays_down_and_all_requests_fail(engine):
    engine.fails_to_start = {3, 4, 5, 6, 7}
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_wait=100.0))
    async with EngineManager(engine, config) as manager, anyio.create_task_group() as tasks:
        running, waiting = Caller(manager, tasks, "a"), Caller(manager, tasks, "b")
        await wait_all_tasks_blocked()
        await restart(manager, engine)
        engine.death.set()
        began = anyio.current_time()
        while manager.state is not State.FAILED:
            await anyio.sleep(0.1)
        # The pause doubles before the second to the fifth restart; there is no sixth restart.
        assert anyio.current_time() - began == pytest.approx(2 + 4 + 8 + 16 + 0.1, abs=0.2)
        await wait_all_tasks_blocked()
        assert isinstance(running.error, EngineDead)
        assert isinstance(waiting.error, EngineDead)
        with pytest.raises(EngineDead):
            await manager.generate("again")
        with pytest.raises(EngineDead):
            manager.check_health()
        assert engine.starts == 6
        check_quiescent(manager)


async def test_an_engine_that_fails_its_streams_first_is_dead_if_not_restarted(engine):
    async with EngineManager(engine, ManagerConfig(restart=RestartConfig(most=0))) as manager:
        async with manager.stream(request()) as stream:
            engine.sinks["r"].put(Delta("a", (1,)))
            await anext(stream)
            engine.sinks["r"].fail(EngineDead("it told me"))
            with pytest.raises(EngineDead, match="it told me"):
                await anext(stream)
        engine.death.set()
        while manager.state is not State.FAILED:
            await anyio.sleep(0.1)
        check_quiescent(manager)


async def test_deaths_long_ago_do_not_count(engine):
    config = ManagerConfig(restart=RestartConfig(most=1, window=60.0))
    async with EngineManager(engine, config) as manager:
        for _ in range(4):
            await die(manager, engine)
            await ready(manager)
            await anyio.sleep(60.0)
        assert manager.statistics().restarts == 4


GRAMMAR = StructuredOutputs.grammar("root ::= root root | [ a-z]")


@pytest.mark.parametrize("reports_itself", [False, True])
async def test_a_constrained_request_is_not_replayed_after_a_stall(engine, reports_itself):
    """Its constraint may be the cause. A killed engine may report first."""
    config = ManagerConfig(restart=RestartConfig(stall_timeout=10.0))
    async with EngineManager(engine, config) as manager, anyio.create_task_group() as tasks:
        constrained = Caller(manager, tasks, "constrained", sampling=Sampling(structured_outputs=GRAMMAR))
        plain = Caller(manager, tasks, "plain")
        await wait_all_tasks_blocked()
        if reports_itself:
            engine.sinks["constrained"].fail(EngineDead("it was killed"))
        await restart_seen(manager)
        assert sorted(engine.submitted) == ["constrained", "plain", "plain"]
        assert isinstance(constrained.error, EngineRestarted)
        assert "stalled" in str(constrained.error)
        engine.finish("plain", "answer")
        await wait_all_tasks_blocked()
        assert plain.answer.text == "answer"
        check_quiescent(manager)


async def test_a_constrained_request_is_replayed_after_a_crash(manager, engine):
    async with anyio.create_task_group() as tasks:
        constrained = Caller(manager, tasks, "r", sampling=Sampling(structured_outputs=GRAMMAR))
        await wait_all_tasks_blocked()
        await restart(manager, engine)
        engine.finish("r", "answer")
    assert constrained.answer.text == "answer"


async def test_an_engine_that_makes_no_step_is_killed(engine):
    config = ManagerConfig(restart=RestartConfig(stall_timeout=10.0))
    async with EngineManager(engine, config) as manager, anyio.create_task_group() as tasks:
        await anyio.sleep(100.0)  # with nothing to do
        caller = Caller(manager, tasks)
        for _ in range(5):
            await anyio.sleep(9.0)
            engine.steps += 1
        assert manager.state is State.READY
        began = anyio.current_time()
        while manager.state is State.READY:
            await anyio.sleep(0.1)
        assert anyio.current_time() - began == pytest.approx(10.0, abs=1.2)
        await ready(manager)
        await wait_all_tasks_blocked()
        engine.finish("r")
        await wait_all_tasks_blocked()
        assert caller.answer.text == "x"


async def test_an_engine_that_says_it_is_dead_and_does_not_end_is_killed(engine):
    config = ManagerConfig(restart=RestartConfig(stall_timeout=10.0))
    async with EngineManager(engine, config) as manager, anyio.create_task_group() as tasks:
        death, engine.death = engine.death, None
        caller = Caller(manager, tasks)
        await anyio.sleep(5.0)
        assert manager.state is State.READY
        engine.kill = death.set
        await restart_seen(manager)
        engine.finish("r")
        await wait_all_tasks_blocked()
        assert caller.answer.text == "x"


async def test_a_hung_engine_s_streams_fail_before_it_is_taken_down(engine):
    """The contract does not limit the time of an engine's cleanup."""

    async def slow_death(*, task_status=anyio.TASK_STATUS_IGNORED):
        try:
            await run(task_status=task_status)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100.0)

    run, engine.run = engine.run, slow_death
    config = ManagerConfig(restart=RestartConfig(stall_timeout=10.0))
    async with EngineManager(engine, config) as manager:
        async with manager.stream(request()) as stream:
            engine.sinks["r"].put(Delta("a", (1,)))
            await anext(stream)
            with anyio.fail_after(12.0), pytest.raises(EngineRestarted):
                await anext(stream)
        # A newcomer gets a finite retry time, too.
        with pytest.raises(Unavailable) as refused:
            await manager.generate("x")
        assert 1.0 <= refused.value.retry_after < 10.0
        await ready(manager)


async def test_leaving_while_there_is_no_engine_leaks_nothing(manager, engine):
    async with anyio.create_task_group() as tasks:
        token = CancellationToken()
        by_token, by_deadline = Caller(manager, tasks, "a", token), Caller(manager, tasks, "b", deadline=10.0)
        await wait_all_tasks_blocked()
        engine.death.set()
        await anyio.sleep(5.0)
        token.cancel("enough")
        await anyio.sleep(10.0)
        assert isinstance(by_token.error, RequestCancelled)
        assert isinstance(by_deadline.error, DeadlineExceeded)
        assert manager.statistics().open == 0
        await ready(manager)
    assert sorted(engine.submitted) == ["a", "b"]


async def test_a_request_that_is_left_during_its_replay_is_aborted(manager, engine):
    async with anyio.create_task_group() as tasks:
        token = CancellationToken()
        caller = Caller(manager, tasks, "r", token)
        await wait_all_tasks_blocked()
        engine.submit_seconds = 5.0
        await restart(manager, engine)
        await anyio.sleep(1.0)
        assert engine.held == {"r"}
        token.cancel("enough")
        await wait_all_tasks_blocked()
        assert isinstance(caller.error, RequestCancelled)
        assert not engine.held
        # The submit that was cancelled half-way does not add the request again.
        await anyio.sleep(10.0)
        assert engine.aborted == ["r"]


async def test_leaving_at_the_moment_of_the_restart_leaks_nothing(engine):
    token = CancellationToken()

    class Manager(EngineManager):
        def _engine_up(self, member):
            super()._engine_up(member)
            if engine.starts == 2:
                token.cancel("enough")

    manager = Manager(engine, CONFIG)
    async with manager, anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks, "r", token)
        await wait_all_tasks_blocked()
        await restart(manager, engine)
        assert isinstance(caller.error, RequestCancelled)
        assert engine.submitted == ["r"]
        check_quiescent(manager)


async def test_the_first_request_to_a_dead_engine_waits_for_the_next_one(engine):
    """An engine may refuse requests for a while before it is known to be dead."""

    async def run(*, task_status=anyio.TASK_STATUS_IGNORED):
        try:
            await end(task_status=task_status)
        except EngineDead:
            await anyio.sleep(0.25)
            raise

    end, engine.run = engine.run, run
    async with EngineManager(engine, CONFIG) as manager, anyio.create_task_group() as tasks:
        engine.death.set()
        callers = [Caller(manager, tasks, name) for name in "ab"]
        await anyio.sleep(0.1)
        assert manager.state is State.READY
        await restart_seen(manager)
        for name in "ab":
            engine.finish(name)
        await wait_all_tasks_blocked()
        assert [caller.answer.text for caller in callers] == ["x", "x"]
        check_quiescent(manager)


async def test_a_prompt_that_is_being_tokenised_is_tokenised_again(manager, engine):
    engine.tokenize_seconds = 1.0
    async with anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks)
        await anyio.sleep(0.5)
        await restart(manager, engine)
        await anyio.sleep(2.0)
        engine.finish("r")
    assert caller.answer.text == "x"


async def test_a_drain_waits_for_the_engine_to_come_back(engine):
    async with EngineManager(engine, ManagerConfig(drain_timeout=60.0)) as manager, anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks)
        await wait_all_tasks_blocked()
        await die(manager, engine)
        tasks.start_soon(manager.drain)
        while not engine.held:
            await anyio.sleep(1.0)
        assert manager.state is State.DRAINING
        engine.finish("r")
        await wait_all_tasks_blocked()
        assert caller.answer.text == "x"


async def test_the_first_start_s_failure_is_the_caller_s(engine):
    engine.fails_to_start = {1}
    with pytest.raises(EngineDead, match="start 1 fails"):
        async with EngineManager(engine, CONFIG):
            pass
    assert engine.starts == 1


async def test_outcomes_name_what_happened(engine):
    outcomes = []

    class Recorder:
        def tokens(self, timeline, count, now): ...

        def finished(self, timeline):
            outcomes.append((timeline.request_id, timeline.outcome))

    async with EngineManager(engine, CONFIG, [Recorder()]) as manager, anyio.create_task_group() as tasks:
        Caller(manager, tasks, "unseen")
        await wait_all_tasks_blocked()
        async with manager.stream(request("seen")) as stream:
            engine.sinks["seen"].put(Delta("a", (1,)))
            await anext(stream)
            engine.death.set()
            with pytest.raises(EngineRestarted):
                await anext(stream)
        await ready(manager)
        await wait_all_tasks_blocked()
        engine.finish("unseen")
    assert outcomes == [("seen", Outcome.FAILED), ("unseen", Outcome.COMPLETED)]


async def test_a_replay_that_the_next_engine_refuses_is_an_error(manager, engine):
    submit = engine.submit

    async def picky(request_id, *more):
        if engine.starts > 1:
            raise EngineError("not again")
        await submit(request_id, *more)

    engine.submit = picky
    async with anyio.create_task_group() as tasks:
        caller = Caller(manager, tasks)
        await wait_all_tasks_blocked()
        await restart(manager, engine)
    assert isinstance(caller.error, EngineError)
    assert str(caller.error) == "not again"


async def test_a_request_to_a_permanently_dead_engine_fails(engine):
    """Only the engine reports it: the supervisor does not know yet."""

    async def dead(*_):
        raise EngineDead("dead and gone")

    async with EngineManager(engine, ManagerConfig(restart=RestartConfig(most=0), drain_timeout=1)) as manager:
        engine.submit = dead
        with pytest.raises(EngineDead, match="dead and gone"):
            await manager.generate(request())
        assert manager.statistics().open == 0


async def test_a_first_start_that_hangs_ends_with_the_start_timeout():
    manager = EngineManager(SimulatedEngine(SimulatedConfig(start_seconds=1e6)), ManagerConfig(restart=RestartConfig(start_timeout=7)))
    began = anyio.current_time()
    with pytest.raises(EngineDead, match=r"^the engine was not up within 7 s$"):
        await manager.__aenter__()
    assert anyio.current_time() - began == pytest.approx(7)
    assert manager.state is State.STOPPED


async def test_a_restart_that_hangs_counts_as_a_death_and_is_tried_again(engine):
    engine.start_seconds = 1e6
    async with EngineManager(engine, ManagerConfig(restart=RestartConfig(start_timeout=7))) as manager:
        await die(manager, engine)
        # The second start hangs for 7 s; the third one does not.
        await anyio.sleep(5)
        engine.start_seconds = 0
        began = anyio.current_time()
        await ready(manager)
        assert engine.starts == 3
        assert anyio.current_time() - began < 7 + 2 + 0.2
        check_quiescent(manager)
