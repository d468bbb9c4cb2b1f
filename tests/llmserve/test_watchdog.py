"""Slow constraints on the simulated engine and a virtual clock: only their requests are ended."""

import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from quiescence import check_quiescent

from llmserve import (
    AdmissionConfig,
    EngineError,
    EngineManager,
    GenerationRequest,
    InvalidRequest,
    ManagerConfig,
    RestartConfig,
    Sampling,
    State,
    StructuredOutputs,
    Unavailable,
)
from llmserve.engine import EngineStatistics
from llmserve.engines.simulated.engine import Fault, SimulatedConfig, SimulatedEngine
from llmserve.engines.vllm.grammars.ejection import Constrained
from llmserve.engines.vllm.outputs import Receiver
from llmserve.lifecycle.watchdog import StepPace

pytestmark = pytest.mark.anyio

COSTLY = StructuredOutputs.grammar("root ::= root root | [ a-z]")
CHEAP = StructuredOutputs.regex("[a-z]+")
CONFIG = ManagerConfig(admission=AdmissionConfig(max_running=16))


def engine(grammar_token_seconds=0.01, **more):
    return SimulatedEngine(SimulatedConfig(grammar_token_seconds=grammar_token_seconds, **more))


def request(constraint=None, name="r", max_tokens=1500, **more):
    return GenerationRequest(
        "hello", request_id=name, sampling=Sampling(max_tokens=max_tokens, ignore_eos=True, structured_outputs=constraint), **more
    )


async def read(manager, asked, ends, times=None):
    """Read a stream to its end, or to its error."""
    try:
        async with manager.stream(asked) as stream:
            async for _ in stream:
                if times is not None:
                    times.append(anyio.current_time())
        ends[asked.request_id] = None
    except Exception as error:
        ends[asked.request_id] = error


async def slow_since(manager, seconds):
    """Return when the mean of the engine's steps has reached a value."""
    while True:
        before = manager.engine.statistics()
        await anyio.sleep(1)
        after = manager.engine.statistics()
        steps = after.busy_steps - before.busy_steps
        if (after.busy_seconds - before.busy_seconds) / max(1, steps) >= seconds:
            return anyio.current_time()


async def test_a_request_that_makes_steps_slow_is_ejected_and_others_go_on(caplog):
    caplog.set_level(logging.WARNING)
    async with EngineManager(engine(), CONFIG) as manager:
        ends = {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, manager, request(COSTLY, "costly"), ends)
            tasks.start_soon(read, manager, request(CHEAP, "cheap", 1000), ends)
            tasks.start_soon(read, manager, request(None, "plain", 1000), ends)
            since = await slow_since(manager, 0.15)
            while "costly" not in ends:
                await anyio.sleep(0.5)
            assert anyio.current_time() - since < 15
        assert isinstance(ends["costly"], InvalidRequest)
        assert ends["costly"].param == "structured_outputs"
        assert (ends["cheap"], ends["plain"]) == (None, None)
        assert manager.statistics().restarts == 0
        check_quiescent(manager)
    (line,) = [record.getMessage() for record in caplog.records if "ejected" in record.getMessage()]
    assert "request costly" in line
    assert "grammar" in line


async def test_a_step_that_takes_as_long_as_a_stall_is_noticed_before_it_ends():
    async with EngineManager(engine(grammar_token_seconds=5.0), CONFIG) as manager:
        ends = {}
        with anyio.fail_after(40):
            await read(manager, request(COSTLY, "costly"), ends)
        assert isinstance(ends["costly"], InvalidRequest)
        assert manager.statistics().restarts == 0


async def test_readiness_fails_while_steps_are_slow_and_comes_back():
    async with EngineManager(engine(), CONFIG) as manager:
        ends, said = {}, []

        async def watch():
            while True:
                try:
                    manager.check_health()
                except Unavailable as error:
                    said.append(error.reason)
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            tasks.start_soon(read, manager, request(None, "plain", 600), ends)
            await read(manager, request(COSTLY, "costly"), ends)
            await anyio.sleep(10)
            tasks.cancel_scope.cancel()
        assert set(said) == {"slow"}
        manager.check_health()


async def test_an_engine_that_does_not_come_back_after_an_ejection_is_killed_and_the_request_is_not_replayed():
    """The step in progress does not end, so the engine never handles the abort."""
    stuck = engine(grammar_token_seconds=0.02)
    config = ManagerConfig(admission=AdmissionConfig(max_running=16), restart=RestartConfig(stall_timeout=300), cleanup_timeout=1)
    async with EngineManager(stuck, config) as manager:
        ends, answers = {}, []

        async def whole():
            answers.append(await manager.generate(request(None, "whole", 400)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(whole)
            tasks.start_soon(read, manager, request(COSTLY, "costly"), ends)
            await slow_since(manager, 0.15)
            stuck._faults[stuck.statistics().steps + 2] = Fault(step=0, kind="hang")
            began = anyio.current_time()
            while manager.state is State.READY:
                if "costly" in ends:
                    with pytest.raises(Unavailable, match="constrained request"):
                        manager.check_health()
                await anyio.sleep(0.5)
            assert anyio.current_time() - began < 25
        assert isinstance(ends["costly"], InvalidRequest)
        assert len(answers[0].token_ids) == 400
        assert manager.statistics().restarts == 1


@pytest.mark.parametrize("constraint", [None, CHEAP])
async def test_slow_steps_that_no_constraint_costs_end_nothing(constraint):
    """For example those of a long prompt on a CPU."""
    manager: Any
    async with EngineManager(engine(step_seconds=0.004), CONFIG) as manager:
        ends = {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, manager, request(None, "plain", 1500), ends)
            await anyio.sleep(2)
            manager.engine.config = SimulatedConfig(step_seconds=2.0, grammar_token_seconds=0.01)
            tasks.start_soon(read, manager, request(constraint, "other", 40), ends)
            await anyio.sleep(60)
            manager.engine.config = SimulatedConfig(step_seconds=0.004, grammar_token_seconds=0.01)
        assert ends == {"plain": None, "other": None}
        assert manager.statistics().restarts == 0


def figures(steps, seconds):
    return EngineStatistics(steps=steps, busy_steps=steps, busy_seconds=seconds)


def test_pauses_between_requests_are_no_slow_steps():
    pace = StepPace()
    for second in range(60):
        # Two steps of 10 ms in each second.
        mean = pace.look(float(second), figures(2 * second, 0.02 * second), busy=True)
        assert mean is None or not pace.is_slow(mean)


def test_usual_step_times_are_not_slow():
    pace = StepPace()
    for second in range(600):
        mean = pace.look(float(second), figures(second // 2, second / 1.0), busy=True)
        if mean is not None:
            pace.learn(mean)
    assert pace.usual == pytest.approx(2, rel=0.4)
    assert not pace.is_slow(4)
    assert pace.is_slow(12)


def test_time_in_which_this_process_stood_still_does_not_count():
    pace = StepPace()
    for second in range(6):
        pace.look(float(second), figures(100 * second, 1.0 * second), busy=True)
    assert pace.look(30.0, figures(600, 6.0), busy=True) is None


class Costs:
    """The cost of each constraint, by its text; a constraint without a cost cannot be tested."""

    def __init__(self, **costs):
        self.costs = costs

    async def cost(self, constraint, token_ids):
        await anyio.lowlevel.checkpoint()
        if constraint.spec not in self.costs:
            raise EngineError("the machine is too busy")
        return self.costs[constraint.spec] * len(token_ids)


def constrained(*specs):
    known = Constrained(set(specs))
    for spec in specs:
        receiver = Receiver(spec, None, Sampling(), set(specs), str, None)
        known.add(spec, StructuredOutputs.regex(spec), receiver)
        receiver.token_ids.append(1)
    return known


async def test_the_requests_whose_constraints_cost_a_step_are_found():
    suspects = constrained("a", "b", "c").suspects
    assert await suspects(Costs(a=0.001, b=0.3, c=0.2), 0.5) == ["b", "c"]
    # They only cost that much in total.
    assert await suspects(Costs(a=0.1, b=0.12, c=0.11), 0.4) == ["b", "c", "a"]
    assert await suspects(Costs(a=0.001, b=0.001, c=0.001), 0.5) == []
    assert await suspects(Costs(a=0.4, b=0.001), 0.5) == ["a"]
    # A constraint that cannot be tested, while no other costs that much.
    assert await suspects(Costs(a=0.001, b=0.001), 0.5) == ["c"]


async def test_requests_that_have_ended_are_forgotten():
    inside = {"a"}
    known = Constrained(inside)
    known.add("a", CHEAP, Receiver("a", None, Sampling(), inside, str, None))
    inside.remove("a")
    inside.add("b")
    known.add("b", CHEAP, Receiver("b", None, Sampling(), inside, str, None))
    assert list(known._known) == ["b"]
