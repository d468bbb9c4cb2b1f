"""The life of a request, with an engine that the test controls. Every test ends in quiescence."""

import asyncio
import threading
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked
from engines import ScriptedEngine
from quiescence import check_quiescent

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve import (
    SLO,
    AdmissionConfig,
    CancellationToken,
    DeadlineExceeded,
    Delta,
    EngineDead,
    EngineError,
    EngineManager,
    GenerationRequest,
    InvalidRequest,
    ManagerConfig,
    Outcome,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
    RestartConfig,
    Sampling,
    State,
    TenantLimits,
    TenantOverloaded,
    TenantTable,
    Unavailable,
    UnknownTenant,
)
from llmserve.admission import AdmissionController, FixedLimit, Refusal, Refused

pytestmark = pytest.mark.anyio


class Recorder:
    """An observer that keeps its events."""

    def __init__(self):
        self.finished_timelines = []

    def tokens(self, timeline, count, now):
        pass

    def finished(self, timeline):
        self.finished_timelines.append(timeline)

    @property
    def outcomes(self):
        return [timeline.outcome for timeline in self.finished_timelines]


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def config():
    return ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=2))


@pytest.fixture
async def manager(engine, config, recorder):
    async with EngineManager(engine, config, [recorder]) as manager:
        yield manager
        check_quiescent(manager)
        assert not engine.held


def request(name="r", **more):
    return GenerationRequest("hello", request_id=name, **more)


async def hold(manager, name, tasks, **more):
    """Start a task that holds a slot until it is cancelled."""

    async def run(*, task_status):
        with anyio.CancelScope() as scope:
            async with manager.stream(request(name, **more)) as stream:
                task_status.started(scope)
                async for _ in stream:
                    pass

    return await tasks.start(run)


async def test_deltas_arrive_in_order_and_the_slot_is_free_afterwards(manager, engine, recorder):
    async with manager.stream(request()) as stream:
        sink = engine.sinks["r"]
        sink.put(Delta("a", (1,)))
        assert (await anext(stream)).text == "a"
        sink.put(Delta("b", (2,)))
        sink.put(Delta("c", (3,), "stop"))
        assert [delta async for delta in stream] == [Delta("bc", (2, 3), "stop")]
        engine.held.discard("r")
        assert manager.statistics().running == 0
    assert engine.aborted == []
    assert recorder.outcomes == [Outcome.COMPLETED]


async def test_the_slot_is_free_when_the_engine_is_done_however_slow_the_reader(manager, engine):
    async with manager.stream(request("slow")):
        engine.finish("slow")
        async with manager.stream(request("next")) as stream:
            engine.finish("next")
            assert [delta.text async for delta in stream] == ["x"]


async def test_generate_returns_the_whole_answer(manager, engine):
    async with anyio.create_task_group() as tasks:

        async def answer():
            await wait_all_tasks_blocked()
            (sink,) = engine.sinks.values()
            sink.put(Delta("Par", (1, 2)))
            engine.finish(engine.submitted[0], "is")

        tasks.start_soon(answer)
        completion = await manager.generate("hello", sampling=Sampling(max_tokens=5))
    assert completion.text == "Paris"
    assert completion.finish_reason == "stop"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5, 3)


@pytest.mark.parametrize("where", ["tokenize", "wait", "submit", "first token", "stream"])
@pytest.mark.parametrize("how", ["token", "deadline", "scope"])
async def test_ended_from_outside_at_every_stage_nothing_is_left(where, how, recorder):
    engine = ScriptedEngine(
        tokenize_seconds=10 if where == "tokenize" else 0, submit_seconds=10 if where == "submit" else 0, abort_seconds=1
    )
    config = ManagerConfig(admission=AdmissionConfig(max_running=1))
    error: Any = {"token": RequestCancelled, "deadline": DeadlineExceeded, "scope": None}[how]
    outcome = Outcome.DEADLINE if how == "deadline" else Outcome.CANCELLED
    token = CancellationToken()
    seen: list[object] = []
    manager: EngineManager

    async def run(scope):
        try:
            with scope:
                async with manager.stream(request(deadline=5 if how == "deadline" else None), token) as stream:
                    if where == "stream":
                        engine.sinks["r"].put(Delta("a", (1,)))
                    async for delta in stream:
                        seen.append(delta.text)
        except (RequestCancelled, DeadlineExceeded) as raised:
            seen.append(type(raised))

    async with EngineManager(engine, config, [recorder]) as manager, anyio.create_task_group() as tasks:
        if where == "wait":
            holder = await hold(manager, "holder", tasks)
        scope = anyio.CancelScope()
        tasks.start_soon(run, scope)
        await anyio.sleep(4)
        if how == "token":
            token.cancel("enough")
        elif how == "scope":
            scope.cancel()
        await anyio.sleep(3)
        if where == "wait":
            holder.cancel()
        await anyio.sleep(3)
        check_quiescent(manager)
        assert not engine.held
    assert seen == (["a"] if where == "stream" else []) + ([error] if error else [])
    assert recorder.finished_timelines[0].outcome is outcome


async def test_leaving_early_aborts_once_and_waits_for_it(manager, engine, recorder):
    engine.abort_seconds = 2
    began = anyio.current_time()
    async with manager.stream(request()) as stream:
        engine.sinks["r"].put(Delta("a", (1,)))
        async for _ in stream:
            break
    assert anyio.current_time() - began == 2
    assert engine.aborted == ["r"]
    assert recorder.outcomes == [Outcome.CANCELLED]


async def test_an_engine_that_never_confirms_an_abort_does_not_keep_the_slot(manager, engine):
    engine.abort_seconds = 10**6
    async with manager.stream(request()):
        pass
    engine.held.clear()
    assert manager.statistics().running == 0


async def test_a_cancelled_submit_is_aborted_after_it_has_unwound(manager, engine):
    engine.submit_seconds = 10
    with anyio.move_on_after(1):
        async with manager.stream(request()):
            pytest.fail("never entered")
    await anyio.sleep(1)
    assert engine.aborted == ["r"]


async def test_an_answer_that_is_complete_within_the_submit_is_not_submitted_again(manager, engine):
    """Its slot is free before the caller reads, as after every last delta."""
    submit = engine.submit

    async def at_once(request_id, *more):
        await submit(request_id, *more)
        engine.finish(request_id)

    engine.submit = at_once
    async with manager.stream(request()) as stream:
        assert manager.statistics().open == 0
        assert (await stream.collect()).text == "x"
    assert (engine.submitted, engine.aborted) == (["r"], [])


async def test_a_slot_granted_in_the_moment_of_cancellation_is_passed_on(manager, engine):
    async with anyio.create_task_group() as tasks:
        holder = await hold(manager, "holder", tasks)
        waiter = anyio.CancelScope()

        async def wait():
            with waiter:
                async with manager.stream(request("waiter")):
                    await anyio.sleep_forever()

        async def third():
            async with manager.stream(request("third")) as stream:
                engine.finish("third")
                assert (await anext(stream)).finish_reason == "stop"

        tasks.start_soon(wait)
        await wait_all_tasks_blocked()
        tasks.start_soon(third)
        await wait_all_tasks_blocked()
        # The engine's end hands the slot to the waiter, which is cancelled before it can wake.
        engine.finish("holder")
        waiter.cancel()
        await wait_all_tasks_blocked()
        holder.cancel()
    # The waiter's request may have reached the engine, but then it was aborted.
    assert engine.submitted[-1] == "third"
    assert set(engine.submitted) - {"holder", "third"} <= set(engine.aborted)


async def test_a_full_queue_refuses_with_a_retry_time(manager):
    async with anyio.create_task_group() as tasks:
        holder = await hold(manager, "holder", tasks)
        scopes = [anyio.CancelScope() for _ in range(2)]

        async def wait(name, scope):
            with scope:
                async with manager.stream(request(name)):
                    pass

        for number, scope in enumerate(scopes):
            tasks.start_soon(wait, f"w{number}", scope)
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await manager.generate(request("late"))
        assert caught.value.reason == "queue_full"
        assert caught.value.retry_after > 0
        for scope in (*scopes, holder):
            scope.cancel()


async def test_patience_ends_after_max_wait(engine, recorder):
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_wait=3), slo=SLO(ttft=2))
    async with EngineManager(engine, config, [recorder]) as manager, anyio.create_task_group() as tasks:
        holder = await hold(manager, "holder", tasks)
        began = anyio.current_time()
        with pytest.raises(Overloaded) as caught:
            await manager.generate(request("patient"))
        # The TTFT target of two seconds is the tighter bound.
        assert anyio.current_time() - began == 2
        assert caught.value.reason == "waited_too_long"
        holder.cancel()
    assert recorder.finished_timelines[0].reason == "waited_too_long"


async def test_a_tenant_s_own_limit_has_its_own_error(engine):
    config = ManagerConfig(admission=AdmissionConfig(max_running=5, tenant_limit=1))
    async with EngineManager(engine, config) as manager, anyio.create_task_group() as tasks:
        holder = await hold(manager, "holder", tasks, tenant="a")
        with pytest.raises(TenantOverloaded):
            await manager.generate(request("more", tenant="a"))
        other = await hold(manager, "other", tasks, tenant="b")
        holder.cancel()
        other.cancel()


async def test_smaller_priority_goes_first(manager, engine):
    order = []

    async def run(name, priority):
        async with manager.stream(request(name, priority=priority)):
            order.append(name)
            engine.finish(name)

    async with anyio.create_task_group() as tasks:
        await hold(manager, "holder", tasks)
        for name, priority in [("later", 1), ("sooner", -1)]:
            tasks.start_soon(run, name, priority)
            await wait_all_tasks_blocked()
        engine.finish("holder")
    assert order == ["sooner", "later"]


@pytest.mark.parametrize(
    ("fields", "sampling", "error", "param"),
    [
        ({"prompt": "x" * 100}, {}, PromptTooLong, "prompt"),
        ({"prompt": [300]}, {}, InvalidRequest, "prompt"),
        ({"prompt": "x" * 90}, {"min_tokens": 11}, InvalidRequest, "min_tokens"),
        ({"prompt": "x"}, {"stop_token_ids": [256]}, InvalidRequest, "stop_token_ids"),
    ],
)
async def test_the_model_s_limits_are_named(manager, engine, recorder, fields, sampling, error, param):
    with pytest.raises(error) as caught:
        await manager.generate(GenerationRequest(**fields, sampling=Sampling(**sampling)))
    assert caught.value.param == param
    assert engine.submitted == []
    assert recorder.outcomes == [Outcome.INVALID]


async def test_max_tokens_is_a_bound_and_the_context_another(manager, engine):
    async with manager.stream(GenerationRequest("x" * 90, sampling=Sampling(max_tokens=11), request_id="long")):
        assert engine.samplings["long"].max_tokens == 10


async def test_max_tokens_defaults_to_what_the_context_and_the_operator_leave(engine):
    async with EngineManager(engine, ManagerConfig(max_tokens=7)) as manager:
        with pytest.raises(InvalidRequest):
            await manager.generate("hello", sampling=Sampling(max_tokens=8))
        async with manager.stream(request()):
            assert engine.samplings["r"].max_tokens == 7
        async with manager.stream(GenerationRequest("x" * 98, request_id="long")):
            assert engine.samplings["long"].max_tokens == 2


async def test_the_same_id_twice_at_once_is_refused(manager):
    async with manager.stream(request("same")):
        with pytest.raises(InvalidRequest) as caught:
            await manager.generate(request("same"))
        assert caught.value.param == "request_id"


async def test_a_request_that_the_engine_fails_fails_alone(manager, engine, recorder):
    async with manager.stream(request()) as stream:
        engine.sinks["r"].put(Delta("a", (1,)))
        engine.sinks["r"].fail(EngineError("bad luck"))
        assert (await anext(stream)).text == "a"
        with pytest.raises(EngineError, match="bad luck"):
            await anext(stream)
    assert recorder.outcomes == [Outcome.FAILED]
    assert manager.state is State.READY


async def test_an_engine_that_is_not_restarted_fails_all_open_and_later_requests(engine, recorder):
    config = ManagerConfig(restart=RestartConfig(most=0))
    async with EngineManager(engine, config, [recorder]) as manager:
        async with manager.stream(request()) as stream:
            engine.death.set()
            with pytest.raises(EngineDead):
                await anext(stream)
        assert manager.state is State.FAILED
        with pytest.raises(EngineDead):
            await manager.generate("again")
        with pytest.raises(EngineDead):
            manager.check_health()
        check_quiescent(manager)
    assert recorder.outcomes == [Outcome.FAILED, Outcome.FAILED]


async def test_drain_refuses_newcomers_and_lets_the_rest_finish(manager, engine):
    async with anyio.create_task_group() as tasks:
        await hold(manager, "holder", tasks)
        tasks.start_soon(manager.drain)
        await wait_all_tasks_blocked()
        assert manager.state is State.DRAINING
        with pytest.raises(Unavailable) as caught:
            await manager.generate("late")
        assert caught.value.reason == "draining"
        engine.finish("holder")


async def test_drain_says_when_time_ran_out(manager, engine):
    async with manager.stream(request()):
        assert not await manager.drain(timeout=5)
    assert await manager.drain(timeout=5)


async def test_leaving_the_manager_ends_what_outlasts_the_drain(engine, recorder):
    caught = []

    async def run(manager):
        try:
            await manager.generate(request())
        except Unavailable as error:
            caught.append(error)

    async with anyio.create_task_group() as tasks:
        async with EngineManager(engine, ManagerConfig(drain_timeout=10), [recorder]) as manager:
            tasks.start_soon(run, manager)
            await wait_all_tasks_blocked()
            began = anyio.current_time()
        assert anyio.current_time() - began == 10
    assert len(caught) == 1
    assert recorder.outcomes == [Outcome.CANCELLED]
    check_quiescent(manager)


async def test_an_error_in_the_body_propagates_unchanged_without_a_drain(engine):
    began = anyio.current_time()
    with pytest.raises(ValueError, match="mine"):
        async with EngineManager(engine) as manager, manager.stream(request()):
            raise ValueError("mine")
    assert anyio.current_time() == began
    assert engine.aborted == ["r"]
    assert manager.state is State.STOPPED


async def test_a_start_that_fails_says_why():
    class Broken(ScriptedEngine):
        async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
            raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        async with EngineManager(Broken()):
            pytest.fail("never entered")


async def test_before_the_start_it_is_unavailable(engine):
    with pytest.raises(Unavailable) as caught:
        await EngineManager(engine).generate("early")
    assert caught.value.reason == "starting"


async def test_the_tokenizer_s_queue_is_bounded():
    engine = ScriptedEngine(tokenize_seconds=1)
    config = ManagerConfig(max_tokenizing=1)
    async with EngineManager(engine, config) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(manager.tokenize, request())
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await manager.generate("more")
        assert caught.value.reason == "tokenizer_busy"


async def test_prompts_do_not_wait_for_each_other_before_the_engine_s_tokenizer():
    """A regression: each turn of the event loop let only two prompts pass."""
    engine = ScriptedEngine(tokenize_seconds=1, max_num_seqs=20)
    async with EngineManager(engine, ManagerConfig(drain_timeout=1)) as manager, anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(manager.generate, request(f"number {number}"))
        await anyio.sleep(1.5)
        assert len(engine.submitted) == 10
        for request_id in engine.submitted:
            engine.finish(request_id)


async def test_a_token_cancelled_before_is_a_request_never_submitted(manager, engine):
    token = CancellationToken()
    token.cancel("too late")
    with pytest.raises(RequestCancelled, match="too late"):
        await manager.generate(request(), token)
    assert engine.submitted == []


async def test_one_token_ends_many_requests(engine):
    token = CancellationToken()
    ended = []

    async def run(manager, name):
        with pytest.raises(RequestCancelled):
            await manager.generate(request(name), token)
        ended.append(name)

    async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=2))) as manager:
        async with anyio.create_task_group() as tasks:
            for name in "abcd":
                tasks.start_soon(run, manager, name)
            await wait_all_tasks_blocked()
            token.cancel()
        check_quiescent(manager)
    assert sorted(ended) == list("abcd")
    assert "0 callbacks" in repr(token)


async def test_metrics_are_in_exact_seconds(engine):
    config = ManagerConfig(slo=SLO(ttft=1.0, tpot=0.4), admission=AdmissionConfig(max_running=2))
    async with EngineManager(engine, config) as manager:
        async with manager.stream(request()) as stream:
            sink = engine.sinks["r"]
            await anyio.sleep(0.5)
            sink.put(Delta("a", (1,)))
            await anyio.sleep(0.6)
            sink.put(Delta("bc", (2, 3)))
            engine.finish("r")
            async for _ in stream:
                pass
        metrics = manager.metrics()
    # Within the 1 % of its buckets, and never above the largest value.
    assert metrics["ttft"]["p50"] == pytest.approx(0.5, rel=0.02)
    assert metrics["itl"]["count"] == 3
    assert metrics["itl"]["max"] == pytest.approx(0.3)
    assert metrics["tpot"]["max"] == pytest.approx(0.6 / 3)
    assert metrics["e2e"]["max"] == pytest.approx(1.1)
    assert metrics["goodput"]["met"] == 1
    assert metrics["requests"]["completed"] == 1
    assert metrics["tokens"]["completion"] == 4


async def test_an_observer_that_raises_harms_no_request(engine, recorder, caplog):
    """The observer runs in the engine's output loop, and vLLM's loop dies of an exception."""

    class Broken:
        def tokens(self, timeline, count, now):
            raise ValueError("broken")

        finished = tokens

    observers: list[Any] = [Broken(), recorder]
    async with EngineManager(engine, None, observers) as manager:
        async with manager.stream(request()) as stream:
            engine.finish("r")
            assert (await stream.collect()).text == "x"
    assert recorder.outcomes == [Outcome.COMPLETED]
    assert "observer" in caplog.text


class TestOnTheRealClock:
    """Tests that need threads and native cancellation: asyncio as in production."""

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_a_token_may_be_cancelled_from_another_thread(self, manager):
        token = CancellationToken()
        with pytest.raises(RequestCancelled, match="from afar"):
            async with manager.stream(request(), token) as stream:
                thread = threading.Thread(target=token.cancel, args=("from afar",))
                thread.start()
                await anext(stream)
        await anyio.to_thread.run_sync(thread.join)

    @pytest.mark.parametrize("cancels", [1, 2])
    @pytest.mark.parametrize("ticks", range(12))
    async def test_native_cancellation_at_any_moment_frees_everything(self, cancels, ticks):
        """Cancel natively, as aiohttp does, once or twice, before or during any step."""
        import asyncio

        engine = ScriptedEngine()
        manager: EngineManager

        async def use():
            async with manager.stream(request()) as stream:
                async for _ in stream:
                    pass

        async with EngineManager(engine) as manager:
            task = asyncio.ensure_future(use())
            for _ in range(ticks):
                await asyncio.sleep(0)
            for _ in range(cancels):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            await manager.drain(timeout=5)
            check_quiescent(manager)
            assert not engine.held


# Rare cases


class RecordingAdmission(AdmissionController):
    """A controller that records its calls."""

    def __init__(self):
        super().__init__(FixedLimit(limit=2))
        self.told = []

    def first_token(self, ticket, now):
        self.told.append(f"{ticket.request_id} has its first token")
        return super().first_token(ticket, now)

    def record(self, facts, now):
        self.told.append("a step")
        return super().record(facts, now)


class WatchedEngine(ScriptedEngine):
    """An engine that reports its steps and its health."""

    ill = False

    def watch(self, stepped):
        self.stepped = stepped

    def check_health(self):
        if self.ill:
            raise EngineDead("it feels ill")


async def test_admission_gets_first_tokens_and_steps():
    engine, admission = WatchedEngine(), RecordingAdmission()
    async with EngineManager(engine, ManagerConfig(drain_timeout=1), admission=admission) as manager:
        async with manager.stream(GenerationRequest("hi", request_id="r")) as stream:
            engine.stepped()
            engine.finish("r")
            assert (await anext(stream)).text == "x"
        assert admission.told == ["a step", "r has its first token"]


async def test_health_is_the_engine_s_own_too():
    engine = WatchedEngine()
    async with EngineManager(engine, ManagerConfig(drain_timeout=1)) as manager:
        manager.check_health()
        engine.ill = True
        with pytest.raises(EngineDead, match="feels ill"):
            manager.check_health()


async def test_while_it_drains_nothing_is_tokenised():
    async with EngineManager(ScriptedEngine(), ManagerConfig(drain_timeout=1)) as manager:
        assert (await manager.tokenize(GenerationRequest("hi"))).token_ids == (104, 105)
        assert await manager.detokenize([104, 105]) == "hi"
        await manager.drain()
        with pytest.raises(Unavailable):
            await manager.tokenize(GenerationRequest("hi"))
        with pytest.raises(Unavailable):
            await manager.detokenize([104])


async def test_every_stage_of_a_request_has_its_time():
    recorder, engine = Recorder(), ScriptedEngine(tokenize_seconds=1.0, submit_seconds=2.0)
    async with EngineManager(engine, ManagerConfig(drain_timeout=1), [recorder]) as manager:
        began = anyio.current_time()
        async with manager.stream(GenerationRequest("hi", request_id="r")) as stream:
            await anyio.sleep(3)
            engine.finish("r")
            await anext(stream)
        await manager.drain()
        with pytest.raises(Unavailable):
            await manager.generate(GenerationRequest("late", request_id="late"))
    line, late = recorder.finished_timelines
    stages = (line.arrived, line.tokenized, line.admitted, line.submitted, line.first_token, line.last_token)
    assert [stage - began for stage in stages] == pytest.approx([0.0, 1.0, 1.0, 1.0, 6.0, 6.0])
    # A request that is refused on arrival ends at the time of its arrival.
    assert late.finished == late.arrived == pytest.approx(began + 6.0)


async def test_a_failed_submit_never_enters():
    class Refusing(ScriptedEngine):
        async def submit(self, request_id, prompt, sampling, priority, sink):
            await super().submit(request_id, prompt, sampling, priority, sink)
            sink.fail(EngineError("no room for it"))

    async with EngineManager(Refusing(), ManagerConfig(drain_timeout=1)) as manager:
        with pytest.raises(EngineError, match="no room"):
            async with manager.stream(GenerationRequest("hi")):
                raise AssertionError("entered")
        check_quiescent(manager)


async def test_a_request_that_is_refused_at_any_length_is_not_tokenised():
    class Counting(ScriptedEngine):
        tokenised = 0

        async def tokenize(self, request):
            self.tokenised += 1
            return await super().tokenize(request)

    class Full(RecordingAdmission):
        def screen(self, ticket, now):
            return Refused(Refusal.QUEUE_FULL, 2.0)

    engine = Counting()
    async with EngineManager(engine, ManagerConfig(drain_timeout=1), admission=Full()) as manager:
        with pytest.raises(Overloaded) as refused:
            await manager.generate("hi")
        assert (refused.value.reason, refused.value.retry_after) == ("queue_full", 2.0)
        assert engine.tokenised == 0
        check_quiescent(manager)


async def test_tenants_that_are_set_hold_at_once_and_stand_in_the_config(engine):
    async with EngineManager(engine, ManagerConfig(drain_timeout=1)) as manager:
        table = TenantTable({"known": TenantLimits(concurrency=3)}, None)
        manager.set_tenants(table)
        assert manager.config.admission.tenants == table
        with pytest.raises(UnknownTenant):
            await manager.generate("hi")
        async with manager.stream(request(tenant="known")):
            pass
        check_quiescent(manager)


async def test_a_manager_is_entered_once_and_knows_nothing_before():
    manager = EngineManager(ScriptedEngine(), ManagerConfig(drain_timeout=1))
    with pytest.raises(RuntimeError, match="not been started"):
        assert manager.admission
    async with manager:
        assert manager.admission
    with pytest.raises(RuntimeError, match="starts once"):
        async with manager:
            pass


async def test_all_errors_have_the_last_death_s_reason():
    engine = ScriptedEngine()
    async with EngineManager(engine, ManagerConfig(restart=RestartConfig(most=0), drain_timeout=1)) as manager:
        engine.kill()
        await anyio.sleep(1)
        assert manager.state is State.FAILED
        for ask in (manager.check_health, manager._refuse_unless_ready):
            with pytest.raises(EngineDead, match="the script says so"):
                ask()


async def test_a_reader_gets_an_error_when_the_host_is_cancelled():
    """The manager's own task is cancelled while another task holds a stream."""
    engine, told = ScriptedEngine(abort_seconds=0.5), []

    async def host(task_status):
        async with EngineManager(engine, ManagerConfig(drain_timeout=1)) as manager:
            task_status.started(manager)
            await anyio.sleep_forever()

    async def reader(manager):
        with pytest.raises(Unavailable) as error:
            await manager.generate(GenerationRequest("hi", request_id="r"))
        told.append(error.value.reason)

    async def hosting(*, task_status):
        with anyio.CancelScope() as scope:
            task_status.scope = scope
            scopes.append(scope)
            await host(task_status)

    scopes = []
    async with anyio.create_task_group() as tasks:
        manager = await tasks.start(hosting)
        tasks.start_soon(reader, manager)
        await wait_all_tasks_blocked()
        scopes[0].cancel()
    assert told == ["stopped"]
    assert engine.aborted == ["r"]
    assert manager.statistics().open == 0


def test_a_callback_of_a_plain_asyncio_run_may_cancel_too():
    """Where nothing shows anyio its backend: a protocol's `connection_lost` under `asyncio.run`."""

    async def main():
        loop, engine = asyncio.get_running_loop(), ScriptedEngine()
        async with EngineManager(engine, ManagerConfig(drain_timeout=1)) as manager:
            token = CancellationToken()
            loop.call_later(1, token.cancel, "from a callback")
            with pytest.raises(RequestCancelled, match="from a callback"):
                await manager.generate(GenerationRequest("hi", request_id="r"), token)
            assert engine.aborted == ["r"]
            check_quiescent(manager)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


async def test_no_request_takes_longer_than_the_operator_says(engine):
    """Row P16: the operator's limit applies regardless of the request's own deadline."""
    async with EngineManager(engine, ManagerConfig(max_seconds=10.0, drain_timeout=1)) as manager:
        for deadline, seconds in ((2.0, 2.0), (None, 10.0), (1000.0, 10.0)):
            began = anyio.current_time()
            with pytest.raises(DeadlineExceeded, match=f"{seconds:g} s"):
                async with manager.stream(request(f"r{deadline}", deadline=deadline)) as stream:
                    await anext(stream)
            assert anyio.current_time() - began == pytest.approx(seconds)
        check_quiescent(manager)


async def test_isolated_tenants_have_separate_caches(engine):
    names = {}
    manager: Any
    for isolated in (False, True):
        async with EngineManager(ScriptedEngine(), ManagerConfig(isolate_tenants=isolated, drain_timeout=1)) as manager:
            for number, tenant in enumerate(("alice", "bob", "alice", "x/" * 200)):
                async with manager.stream(request(f"r{number}", tenant=tenant)):
                    names.setdefault(isolated, []).append(manager.engine.prompts[f"r{number}"].cache_salt)
    assert names[False] == [None] * 4
    alice, bob, again, slashes = names[True]
    assert alice == again
    assert len({alice, bob, slashes}) == 3
    assert all(len(name) == 32 and name.isalnum() for name in names[True])
