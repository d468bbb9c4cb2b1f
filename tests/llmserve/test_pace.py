"""The SLO check, and admission by step times, with the simulated engine on a virtual clock."""

import anyio
import pytest

from llmserve import (
    SLO,
    AdmissionConfig,
    ConfigurationError,
    EngineManager,
    GenerationRequest,
    ManagerConfig,
    Overloaded,
    Sampling,
    TenantLimits,
    TenantTable,
    UnknownTenant,
)
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine

pytestmark = pytest.mark.anyio


def manager(slo, admission=None, **size):
    engine = SimulatedEngine(SimulatedConfig(**size))
    return EngineManager(engine, ManagerConfig(slo=slo, admission=admission or AdmissionConfig()))


@pytest.mark.parametrize(("slo", "named"), [(SLO(tpot=0.001), "slo.tpot is 0.001 s"), (SLO(ttft=0.002), "slo.ttft is 0.002 s")])
async def test_an_slo_that_a_single_request_cannot_meet_is_an_error_at_the_start(slo, named):
    with pytest.raises(ConfigurationError, match=named):
        async with manager(slo):
            pass


async def test_with_a_fixed_limit_the_slo_is_not_checked():
    async with manager(SLO(tpot=0.001), AdmissionConfig(max_running=2)) as one:
        assert one.statistics().engine.steps == 0


async def ask(one, outcomes, **fields):
    request = GenerationRequest(tuple(range(1, 33)), sampling=Sampling(max_tokens=32, ignore_eos=True), **fields)
    try:
        await one.generate(request)
    except Overloaded as error:
        outcomes.append(error)
    else:
        outcomes.append(None)


async def test_an_overloaded_manager_meets_the_slo_of_admitted_requests():
    """16 slots with requests of some 150 ms serve 100 a second; the load is 300 for 10 s."""
    outcomes = []
    async with manager(SLO(ttft=0.5, tpot=0.05), prefix_caching=False) as one:
        async with anyio.create_task_group() as tasks:
            for _ in range(3000):
                tasks.start_soon(ask, one, outcomes)
                await anyio.sleep(1 / 300)
        admission, goodput = one.statistics().admission, one.metrics()["goodput"]
    assert admission.policy == "lategate"
    assert admission.counting is None
    taken = outcomes.count(None)
    assert 700 < taken < 1000
    assert goodput["met"] >= 0.99 * taken
    refusals = [error for error in outcomes if error is not None]
    assert {error.reason for error in refusals} <= {"would_wait_too_long", "waited_too_long", "queue_full"}
    assert all(0.1 <= error.retry_after <= 30 for error in refusals)
    assert sum(admission.refused.values()) == len(refusals)
    assert admission.held["sequences"] > 0


async def test_without_load_no_request_is_refused():
    outcomes = []
    async with manager(SLO(ttft=0.5, tpot=0.05)) as one, anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(ask, one, outcomes)
            await anyio.sleep(1 / 50)
    assert outcomes == [None] * 200


async def test_every_decision_can_be_asked_for():
    async with manager(SLO(ttft=0.5)) as one:
        await one.generate(GenerationRequest("hello", sampling=Sampling(max_tokens=4), request_id="mine"))
        (decision,) = one.admission.explain("mine")
    assert (decision.verdict, decision.constraint, decision.prompt_tokens) == ("started", None, 5)
    assert decision.step_seconds > 0
    assert decision.margin == 0.9


async def test_best_effort_requests_are_served_late():
    """In a queue too slow for the SLO some are refused, and best-effort requests come later."""
    outcomes, flexible = [], []
    async with (
        manager(SLO(ttft=0.5), AdmissionConfig(max_waiting=100), max_num_seqs=2, prefix_caching=False) as one,
        anyio.create_task_group() as tasks,
    ):
        for number in range(60):
            if number % 10:
                tasks.start_soon(ask, one, outcomes)
            else:
                tasks.start_soon(lambda: ask(one, flexible, best_effort=True))
            await anyio.sleep(1 / 60)
    assert any(outcomes)
    assert flexible == [None] * 6


async def test_a_new_table_of_tenants_holds_at_once():
    async with manager(SLO()) as one:
        await one.generate(GenerationRequest("hello", tenant="a", sampling=Sampling(max_tokens=1)))
        one.set_tenants(TenantTable({"b": TenantLimits()}, None))
        with pytest.raises(UnknownTenant, match="'a'"):
            await one.generate(GenerationRequest("hello", tenant="a", sampling=Sampling(max_tokens=1)))
        await one.generate(GenerationRequest("hello", tenant="b", sampling=Sampling(max_tokens=1)))
        assert one.metrics()["requests"]["invalid"] == 1


async def test_an_admission_that_fails_to_learn_does_not_take_the_engine_with_it(caplog):
    async with manager(SLO()) as one:
        one.admission.record = None
        await one.generate(GenerationRequest("hello", sampling=Sampling(max_tokens=2)))
    assert "admission failed" in caplog.text
