"""Settings that are replaced while requests run: limits change, and nothing that was learnt is lost."""

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
    DeadlineExceeded,
    EngineDead,
    EngineManager,
    GenerationRequest,
    InvalidRequest,
    ManagerConfig,
    Overloaded,
    RestartConfig,
)
from llmserve.admission import AdmissionController, FixedLimit, LateGate, Ticket, TicketState

pytestmark = pytest.mark.anyio
PREDICTS = SLO(ttft=1.0, tpot=0.1)


def limited(**admission):
    return ManagerConfig(admission=AdmissionConfig(**admission), drain_timeout=1)


class Requests:
    """Requests that hold their slots until they are cancelled."""

    def __init__(self, manager, tasks):
        self._manager, self._tasks = manager, tasks
        self.running = 0

    async def begin(self, count):
        for _ in range(count):
            self._tasks.start_soon(self._hold)
        await wait_all_tasks_blocked()

    async def _hold(self):
        async with self._manager.stream(GenerationRequest("hi")):
            self.running += 1
            await anyio.sleep_forever()


async def test_a_waiting_request_starts_when_the_limit_is_raised():
    async with EngineManager(ScriptedEngine(), limited(max_running=1, max_waiting=1)) as manager:
        async with anyio.create_task_group() as tasks:
            requests = Requests(manager, tasks)
            await requests.begin(2)
            assert requests.running == 1
            manager.reconfigure(limited(max_running=3, max_waiting=0))
            await wait_all_tasks_blocked()
            assert requests.running == 2
            await requests.begin(1)
            assert requests.running == 3
            with pytest.raises(Overloaded):
                await manager.generate("hi")
            statistics = manager.statistics().admission
            assert statistics is not None
            assert (statistics.limit, statistics.max_waiting) == (3, 0)
            # What runs above a lower limit runs to its end.
            manager.reconfigure(limited(max_running=1, max_waiting=0))
            assert requests.running == 3
            tasks.cancel_scope.cancel()
        await manager.drain()
        check_quiescent(manager)


async def test_limits_of_a_request_hold_for_the_next_one():
    async with EngineManager(ScriptedEngine(), limited()) as manager:
        manager.reconfigure(attrs.evolve(limited(max_running=1, max_wait=2.0), max_tokens=5, max_seconds=3.0))
        with pytest.raises(InvalidRequest, match="max_tokens"):
            await manager.generate("hi", max_tokens=6)
        with anyio.fail_after(10):
            began = anyio.current_time()
            with pytest.raises(DeadlineExceeded):
                await manager.generate("hi")
            assert anyio.current_time() - began == pytest.approx(3.0)
            async with anyio.create_task_group() as tasks:
                await Requests(manager, tasks).begin(1)
                began = anyio.current_time()
                with pytest.raises(Overloaded):
                    await manager.generate("hi")
                assert anyio.current_time() - began == pytest.approx(2.0)
                tasks.cancel_scope.cancel()


async def test_other_settings_are_applied_before_and_after_the_start():
    manager = EngineManager(ScriptedEngine(), limited())
    config = attrs.evolve(limited(max_running=2), slo=PREDICTS, drain_timeout=7.0, cleanup_timeout=9.0)
    manager.reconfigure(config)
    async with manager:
        assert manager.metrics()["goodput"]["slo"] == {"ttft": 1.0, "tpot": 0.1}
        manager.reconfigure(attrs.evolve(config, slo=SLO(ttft=2.0)))
        assert manager.metrics()["goodput"]["slo"] == {"ttft": 2.0, "tpot": None}
        # The manager still has the value that it uses.
        assert manager.config.cleanup_timeout == ManagerConfig().cleanup_timeout
        async with anyio.create_task_group() as tasks:
            await Requests(manager, tasks).begin(1)
            manager.reconfigure(attrs.evolve(config, drain_timeout=4.0))
            began = anyio.current_time()
            await manager.close()
            assert anyio.current_time() - began == pytest.approx(4.0)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "config",
    [
        ManagerConfig(slo=PREDICTS),
        limited(max_running=0),
        limited(policy="unlimited"),
        ManagerConfig(slo=PREDICTS, admission=AdmissionConfig(policy="lategate", max_running=2)),
    ],
)
async def test_settings_that_need_another_policy_change_nothing(config):
    async with EngineManager(ScriptedEngine(), limited(max_running=1)) as manager:
        before = manager.config
        with pytest.raises(ConfigurationError):
            manager.reconfigure(config)
        assert manager.config is before
        assert repr(manager.admission) == "<AdmissionController 0/1 running, 0 waiting>"


async def test_the_caller_s_own_admission_keeps_its_limits():
    admission = AdmissionController(FixedLimit(2))
    async with EngineManager(ScriptedEngine(), admission=admission) as manager:
        manager.reconfigure(limited(max_running=1, tenant_limit=1))
        assert admission.policy.limit == 2
        async with anyio.create_task_group() as tasks:
            await Requests(manager, tasks).begin(1)
            with pytest.raises(Overloaded, match="tenant"):
                await manager.generate("hi")
            tasks.cancel_scope.cancel()


async def test_a_stall_timeout_that_is_set_later_ends_an_engine_that_hangs():
    class Hanging(ScriptedEngine):
        killed = False

        def kill(self):
            self.killed = True
            super().kill()

    engine = Hanging()
    config = attrs.evolve(limited(), restart=RestartConfig(most=0, stall_timeout=None))
    async with EngineManager(engine, config) as manager:
        with pytest.raises(EngineDead, match="no step"):
            async with manager.stream("hi") as stream:
                await anyio.sleep(100)
                assert not engine.killed
                manager.reconfigure(attrs.evolve(config, restart=RestartConfig(most=0, stall_timeout=5.0)))
                with anyio.fail_after(10):
                    await anext(stream)
        assert engine.killed


def test_lategate_keeps_what_it_has_learnt():
    policy = LateGate(SLO(ttft=1.0, tpot=0.1), 4, 100)
    controller = AdmissionController(policy)
    for number in range(8):
        ticket = Ticket(prompt_tokens=10 * (1 + number % 2), arrived=float(number))
        controller.offer(ticket, float(number))
        controller.first_token(ticket, number + 0.01 * ticket.prompt_tokens)
        controller.leave(ticket, number + 0.5)
    running = Ticket(prompt_tokens=10, arrived=9.0)
    controller.offer(running, 9.0)
    learnt = policy._prefill.at(50)
    assert learnt == pytest.approx(0.5, rel=0.1)
    controller.adopt(AdmissionController(LateGate(SLO(ttft=0.4), 4, 100)), 9.5)
    assert policy._prefill.at(50) == learnt
    slow = Ticket(prompt_tokens=50, arrived=9.5)
    refused = controller.offer(slow, 9.5)
    assert refused is not None
    assert refused.reason == "prompt_too_slow"
    assert running.state is TicketState.RUNNING
    controller.leave(running, 10.0)
    assert controller.statistics(10.0).running == 0
