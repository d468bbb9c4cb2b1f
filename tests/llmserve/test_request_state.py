"""The states of an open request: the table against a model, and a manager against random events."""

import anyio
import attrs
import pytest
from engines import ScriptedEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from quiescence import Audit, check_quiescent

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve import (
    CancellationToken,
    Delta,
    EngineError,
    EngineManager,
    GenerationRequest,
    LLMServeError,
    ManagerConfig,
    RestartConfig,
    Sampling,
)
from llmserve.lifecycle.request_state import TRANSITIONS, Event, IllegalTransition, RequestState, StateMachine
from llmserve.lifecycle.stream import TokenStream


@attrs.define
class Facts:
    """What the states stand for, as separate facts, and which events they allow."""

    on_the_way: bool = True
    in_engine: bool = False
    settled: bool = False
    released: bool = False

    def allows(self, event):
        return {
            Event.SUBMIT: self.on_the_way and not self.in_engine,
            Event.ENTERED: self.on_the_way,
            Event.FINISHED: self.in_engine and not self.settled,
            Event.LOST: self.in_engine,
            Event.REPLAY: not (self.on_the_way or self.in_engine or self.settled),
            Event.SETTLE: not (self.on_the_way or self.settled),
            Event.ABORTED: self.settled and not self.released,
            Event.RELEASE: self.settled and not (self.in_engine or self.released),
        }[event]

    def note(self, event):
        changes = {
            Event.SUBMIT: {"in_engine": True},
            Event.ENTERED: {"on_the_way": False},
            Event.FINISHED: {"in_engine": False},
            Event.LOST: {"in_engine": False},
            Event.REPLAY: {"on_the_way": True},
            Event.SETTLE: {"settled": True},
            Event.ABORTED: {"in_engine": False},
            Event.RELEASE: {"released": True},
        }
        for name, value in changes[event].items():
            setattr(self, name, value)


class AllEvents(RuleBasedStateMachine):
    """Each event in any order: it is processed if the facts allow it, and otherwise raises."""

    def __init__(self):
        super().__init__()
        self.machine, self.facts, self.seen = StateMachine(), Facts(), []

    @rule(event=st.sampled_from(Event))
    def happen(self, event):
        before = self.machine.now
        if self.facts.allows(event):
            self.machine.process(event)
            self.facts.note(event)
            self.seen.append(event)
        else:
            with pytest.raises(IllegalTransition, match=f"^{event.name} is illegal in the state {before.name}: it leads from"):
                self.machine.process(event)
            assert self.machine.now is before

    @invariant()
    def the_state_says_what_is_true(self):
        assert self.machine.in_engine == self.facts.in_engine
        assert self.machine.on_the_way == self.facts.on_the_way
        assert (self.machine.now in (RequestState.ABORTING, RequestState.SETTLED)) == (self.facts.settled and not self.facts.released)
        assert (self.machine.now is RequestState.RELEASED) == self.facts.released

    @invariant()
    def a_release_is_the_one_and_last_end(self):
        assert self.seen.count(Event.SETTLE) <= 1
        assert Event.RELEASE not in self.seen[:-1]
        if Event.SETTLE in self.seen:
            assert not {Event.SUBMIT, Event.REPLAY} & set(self.seen[self.seen.index(Event.SETTLE) :])


AllEvents.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAllEvents = AllEvents.TestCase


def test_every_state_is_reached_and_only_the_released_one_is_final():
    reached = {RequestState.ENTERING} | {after for row in TRANSITIONS.values() for after in row.values()}
    left = {before for row in TRANSITIONS.values() for before in row}
    assert reached == set(RequestState)
    assert reached - left == {RequestState.RELEASED}


def test_an_illegal_event_names_the_state_and_what_is_legal():
    with pytest.raises(RuntimeError) as caught:
        StateMachine().process(Event.SETTLE)
    assert str(caught.value) == ("SETTLE is illegal in the state ENTERING: it leads from DETACHED to SETTLED, RUNNING to ABORTING")


class CheckingEngine(ScriptedEngine):
    """Checks what a manager may ask of an engine."""

    def __init__(self):
        super().__init__(start_seconds=2.0, submit_seconds=0.1, abort_seconds=0.1, tokenize_seconds=0.1)
        self.needless_aborts = []

    async def submit(self, request_id, prompt, sampling, priority, sink):
        assert not sink.ended, "a request was submitted after its end"
        assert request_id not in self.held, "the engine already holds it"
        await super().submit(request_id, prompt, sampling, priority, sink)

    async def abort(self, request_id):
        # An engine that has died gets the abort of a request that was in it.
        if request_id in self.aborted or (request_id not in self.held and self.death is not None):
            # The manager logs what an abort raises, so raising would prove nothing.
            self.needless_aborts.append(request_id)
        await super().abort(request_id)


NAMES = ("a", "b")
# What happens, to which request, and the seconds until the next step. Requests begin first: a step
# with a request that has not begun does nothing.
CALLS = st.tuples(st.sampled_from(["read", "collect"]), st.sampled_from(NAMES), st.sampled_from([0.0, 0.05, 0.15, 0.5]))
STEPS = st.tuples(
    st.sampled_from(["put", "finish", "fail", "cancel", "leave", "die"]),
    st.sampled_from(NAMES),
    st.sampled_from([0.0, 0.05, 0.15, 0.5, 10.0]),
)


class Scene:
    """A manager, its engine, and callers; each step of the test is a method."""

    def __init__(self, manager, engine, tasks):
        self.manager, self.engine, self.tasks = manager, engine, tasks
        self.tokens = {name: CancellationToken() for name in NAMES}
        self.scopes = {}

    async def call(self, name, use):
        request = GenerationRequest("hi", request_id=name, sampling=Sampling(max_tokens=9))
        with self.scopes[name]:
            try:
                async with self.manager.stream(request, self.tokens[name]) as stream:
                    await use(stream)
            except LLMServeError:
                pass

    def start(self, name, use):
        if name not in self.scopes:
            self.scopes[name] = anyio.CancelScope()
            self.tasks.start_soon(self.call, name, use)

    def collect(self, name):
        self.start(name, TokenStream.collect)

    def read(self, name):
        async def read(stream):
            async for _ in stream:
                pass

        self.start(name, read)

    def runs(self, name):
        return name in self.engine.held and not self.engine.sinks[name].ended

    def put(self, name):
        if self.runs(name):
            self.engine.sinks[name].put(Delta("x", (1,)))

    def finish(self, name):
        if self.runs(name):
            self.engine.finish(name)

    def fail(self, name):
        if self.runs(name):
            self.engine.sinks[name].fail(EngineError("the engine cannot go on with it"))

    def cancel(self, name):
        self.tokens[name].cancel("enough")

    def leave(self, name):
        if name in self.scopes:
            self.scopes[name].cancel()

    def die(self, _):
        if self.engine.death is not None:
            self.engine.kill()


async def play(steps):
    engine, audit = CheckingEngine(), Audit()
    config = ManagerConfig(restart=RestartConfig(most=2, first_pause=0.1), drain_timeout=1.0)
    async with EngineManager(engine, config, (audit,)) as manager:
        async with anyio.create_task_group() as tasks:
            scene = Scene(manager, engine, tasks)
            for step, name, pause in steps:
                getattr(scene, step)(name)
                await anyio.sleep(pause)
            await anyio.sleep(1.0)
            for name in NAMES:
                scene.cancel(name)
        check_quiescent(manager, audit)
        assert set(audit.ends) == set(scene.scopes)
        assert not engine.held
        assert not engine.needless_aborts


@settings(max_examples=300, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=3), st.lists(STEPS, max_size=10))
def test_a_manager_releases_each_request_once_and_aborts_what_the_engine_holds(calls, steps):
    anyio.run(play, calls + steps, backend_options={"loop_factory": VirtualLoop})
