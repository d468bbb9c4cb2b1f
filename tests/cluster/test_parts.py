"""The parts of a cluster without Ray: loads, shared state, autoscaling, arguments, relay."""

import asyncio
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.access.control import KEY_VARIABLE
from frontends.cluster import replica, shared_state
from frontends.cluster.autoscaling import MAX_GROWTH, Pressure, desired
from frontends.cluster.replica import Replica
from frontends.cluster.replica_directory import ReplicaAddress, ReplicaReport
from frontends.cluster.replica_load import NEW, Load, in_order
from frontends.cluster.replica_server import OneProcess
from frontends.cluster.settings import from_words, read_settings
from frontends.cluster.shared_state import SharedState
from frontends.ray_app import application
from llmserve import (
    ConfigurationError,
    EngineDead,
    EngineManager,
    EngineStatistics,
    LLMServeError,
    ManagerStatistics,
    MetricsSnapshot,
    Outcome,
    State,
    TenantLimits,
    TenantTable,
    Timeline,
)
from llmserve.admission import AdmissionController, AdmissionStatistics, Refusal, Tenants, Ticket, Unlimited, UsageDelta
from llmserve.config import SLO
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine
from llmserve.observability.metrics import MetricsRecorder


@pytest.fixture
def anyio_backend():
    return "asyncio"


def load(number=1, **more):
    fields = {"ready": True, "running": 0, "waiting": 0, "limit": 4, "wait": None, "interval": None}
    return Load(number=number, **fields | more)


# The order of replicas


def test_a_replica_with_room_comes_before_a_full_one_and_an_unready_one_comes_last():
    loads = {
        "full": load(running=4, wait=2.0),
        "room": load(running=3),
        "starting": load(ready=False),
        "line": load(running=4, waiting=1, wait=1),
    }
    assert in_order(list(loads), loads, {}) == ["room", "line", "full", "starting"]


def test_requests_sent_since_the_report_count():
    loads = {"a": load(running=2), "b": load(running=3)}
    assert in_order(["a", "b"], loads, {"a": 1}) == ["a", "b"]
    assert in_order(["a", "b"], loads, {"a": 2}) == ["b", "a"]
    # Full because of the sent requests, each of which has to wait for the previous ones.
    assert load(running=2, interval=0.5).expected_wait(2) == 1.0
    assert load(running=2, interval=0.5).expected_wait(1) == 0.0


def test_a_replica_without_a_report_is_new_and_empty():
    assert in_order(["busy", "new"], {"busy": load(running=1)}, {}) == ["new", "busy"]
    assert NEW.rank(0) == (False, 0.0, 0)


def statistics(state=State.READY, engine=None, **admission):
    fields: dict[str, Any] = {"running": 0, "waiting": 0, "limit": 4, "max_waiting": 8, "admitted": 0, "refused": {}, "drain_rate": None}
    return ManagerStatistics(
        state=state, open=0, tokenizing=0, admission=AdmissionStatistics(**fields | admission), engine=engine or EngineStatistics()
    )


def test_a_load_is_made_of_statistics():
    made = Load.of(statistics(running=3, waiting=2, drain_rate=4.0, predicted_wait=0.5), 7)
    assert made == Load(number=7, ready=True, running=3, waiting=2, limit=4, wait=0.5, interval=0.25)
    assert not Load.of(statistics(State.RESTARTING), 1).ready


# Shared state


def told(now=0.0, started=0.0, **fields):
    recorder = MetricsRecorder(SLO(), started=started)
    for _ in range(fields.pop("completed", 0)):
        recorder.finished(Timeline(outcome=Outcome.COMPLETED, finished=now))
    return now, MetricsSnapshot(statistics(**fields), recorder)


@pytest.mark.parametrize("shares", [(1, 1), (3, 1)])
async def test_a_replica_gets_the_usage_of_all_others_since_its_last_exchange(shares):
    one = SharedState(lambda: 0.0)
    for name in "abc":
        assert await one.exchange(name, UsageDelta(), told()) == UsageDelta()
    await one.exchange("a", UsageDelta(costs={"web": shares[0]}, tokens={"web": 10}), told())
    await one.exchange("b", UsageDelta(costs={"web": shares[1], "batch": 2}, tokens={"web": -3}), told())
    assert await one.exchange("c", UsageDelta(), told()) == UsageDelta(costs={"web": sum(shares), "batch": 2}, tokens={"web": 7})
    assert await one.exchange("c", UsageDelta(), told()) == UsageDelta()
    assert await one.exchange("a", UsageDelta(), told()) == UsageDelta(costs={"web": shares[1], "batch": 2}, tokens={"web": -3})


async def test_open_requests_elsewhere_are_those_of_the_last_reports_until_replicas_are_gone():
    now = 0.0
    one = SharedState(lambda: now)
    await one.exchange("a", UsageDelta(open={"web": 2}), told())
    await one.exchange("b", UsageDelta(open={"web": 1, "batch": 1}), told())
    for _ in range(2):
        assert (await one.exchange("c", UsageDelta(), told())).open == {"web": 3, "batch": 1}
    await one.exchange("a", UsageDelta(open={"web": 1}), told())
    assert (await one.exchange("c", UsageDelta(), told())).open == {"web": 2, "batch": 1}
    now = shared_state.GONE_SECONDS + 1
    assert (await one.exchange("c", UsageDelta(), told())).open == {}


async def test_open_requests_elsewhere_are_forgotten_when_the_shared_state_does_not_answer(monkeypatch):
    monkeypatch.setattr(replica, "EXCHANGE_SECONDS", 0.0)
    admission = AdmissionController(Unlimited(), tenants=Tenants(TenantTable({"a": TenantLimits(concurrency=1)})))
    stop, refused = asyncio.Event(), []

    async def exchange(*_):
        refused.append(admission.offer(Ticket(tenant="a"), 0.0))
        if len(refused) == 1:
            admission.leave(next(iter(admission._running)), 0.0)
            return UsageDelta(open={"a": 1})
        stop.set()
        raise RuntimeError("it is gone")

    # Of a replica, what is asked there: Ray makes whole ones.
    async def tell():
        return told()

    server, handle = SimpleNamespace(admission=admission), SimpleNamespace(exchange=SimpleNamespace(remote=exchange))
    this: Any = SimpleNamespace(_id="here", _stop=stop, _server=server, _shared_state=handle, _tell=tell)
    await Replica._exchange(this)
    refused.append(admission.offer(Ticket(tenant="a"), 0.0))
    assert [found and found.reason for found in refused] == [None, Refusal.TENANT_LIMIT, None]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.dictionaries(st.sampled_from(["x", "y"]), st.integers(1, 9))), max_size=40))
async def test_no_usage_is_lost_or_reported_twice(calls):
    one = SharedState(lambda: 0.0)
    taken = dict.fromkeys("abc", 0.0)
    served = dict.fromkeys("abc", 0)
    for name in "abc":
        await one.exchange(name, UsageDelta(), told())
    for name, costs in [*calls, ("a", {}), ("b", {}), ("c", {})]:
        served[name] += sum(costs.values())
        mail = await one.exchange(name, UsageDelta(costs=costs, tokens=costs), told())
        assert mail.costs == mail.tokens
        taken[name] += sum(mail.costs.values())
    assert taken == {name: sum(served.values()) - served[name] for name in "abc"}


async def test_nothing_is_kept_for_a_dead_replica_and_only_the_largest_tenants_are_kept():
    now = 0.0
    one = SharedState(lambda: now)
    crowd = UsageDelta(costs={str(number): number for number in range(2 * shared_state.MAX_TENANTS)})
    await one.exchange("gone", UsageDelta(), told())
    await one.exchange("here", UsageDelta(), told())
    now = shared_state.GONE_SECONDS + 1
    await one.exchange("new", crowd, told())
    await one.exchange("here", UsageDelta(), told())
    await one.exchange("new", crowd, told())
    assert one._replicas["gone"].mail == UsageDelta()
    mail = await one.exchange("here", UsageDelta(), told())
    assert len(mail.costs) == shared_state.MAX_TENANTS
    assert min(mail.costs.values()) == shared_state.MAX_TENANTS


async def test_an_ingress_learns_at_once_of_a_replica_that_joins_or_leaves():
    one = SharedState(lambda: 0.0)
    address = ReplicaAddress("a", "10.0.0.1", 8000, "secret")
    assert await one.reports([], 0.01) == {}
    async with asyncio.timeout(30):
        waiting = asyncio.create_task(one.reports([], 60.0))
        await asyncio.sleep(0)
        await one.report(address, load(1))
        assert (await waiting).keys() == {"a"}
        waiting = asyncio.create_task(one.reports(["a"], 60.0))
        await asyncio.sleep(0)
        # Another report of the same one does not wake it.
        await one.report(address, load(2))
        await asyncio.sleep(0)
        assert not waiting.done()
        await one.leave("a")
        assert await waiting == {}
        assert await one.reports(["a"], 60.0) == {}


async def test_a_replica_is_found_until_it_leaves_or_is_silent_for_long():
    now = 0.0
    one = SharedState(lambda: now)
    address = ReplicaAddress("a", "10.0.0.1", 8000, "secret")
    await one.report(address, load(1))
    now = 3.0
    assert await one.reports() == {"a": ReplicaReport(address, load(1), 3.0)}
    await one.report(address, load(2))
    assert (await one.reports())["a"].silent == 0.0
    await one.leave("a")
    await one.leave("a")
    assert await one.reports() == {}
    await one.report(address, load(3))
    now += shared_state.LEFT_SECONDS + 1
    assert await one.reports() == {}


async def test_a_replica_s_counts_outlive_it():
    now = 100.0
    one = SharedState(lambda: now)
    await one.exchange("dies", UsageDelta(), told(5.0, completed=3, running=2, admitted=5, refused={"queue_full": 1}))
    await one.exchange("lives", UsageDelta(), told(7.0, completed=10))
    assert await one.gone(["dies", "lives"]) is None
    for _ in range(2):
        then, facts = await one.gone(["lives"])
        found = facts.snapshot(now)
        assert then == now
        assert (found["requests"]["completed"], found["admission"]["refused"]) == (3, {"queue_full": 1})
        assert (found["admission"]["running"], found["admission"]["limit"]) == (0, 0)
        # A replica without an exchange for long is forgotten, and its counts are kept.
        now += shared_state.BURIED_SECONDS + 1
        await one.exchange("lives", UsageDelta(), told(17.0, completed=10))
    assert set(one._replicas) == {"lives"}


async def test_a_replica_that_was_out_of_reach_and_comes_back_is_counted_once():
    """A regression: a returning replica's counts were already added to those of dead replicas."""
    now = 100.0
    one = SharedState(lambda: now)
    for _ in range(3):
        await one.exchange("cut off", UsageDelta(), told(5.0, completed=3))
        now += shared_state.GONE_SECONDS + 1
        await one.exchange("lives", UsageDelta(), told(7.0))
        _, facts = await one.gone(["lives"])
        assert facts.snapshot(now)["requests"]["completed"] == 3
    assert await one.gone(["lives", "cut off"]) is None


# Autoscaling


@given(st.integers(1, 50), st.floats(0, 1), st.floats(0, 10), st.floats(0, 2), st.floats(0.05, 1))
def test_there_are_more_when_some_are_refused_and_never_more_than_twice(replicas, shed, wait, busy, knee):
    wanted, state = desired(replicas, shed, wait, busy, {"knee": knee})
    assert 1 <= wanted <= max(replicas + 1, replicas * MAX_GROWTH)
    if shed > 0.01 or wait > 1:
        assert wanted > replicas
    else:
        assert wanted <= replicas
    assert 0.05 <= state["knee"] <= 1


def test_idle_replicas_are_removed_and_busy_ones_stay():
    assert desired(4, 0.0, 0.0, 0.0, {})[0] == 1
    assert desired(4, 0.0, 0.0, 0.7, {})[0] == 4
    assert desired(4, 0.0, 0.0, 0.3, {})[0] == 2


def test_a_replica_that_was_full_at_a_fifth_of_its_slots_does_not_count_as_idle():
    more, state = desired(2, 0.5, 0.0, 0.2, {})
    assert more == 4
    assert desired(4, 0.0, 0.0, 0.15, state)[0] == 4


def test_pressure_covers_the_time_since_the_last_report_and_only_capacity():
    pressure = Pressure(patience=2.0)
    first = pressure.of(statistics(running=2, admitted=10, refused={"queue_full": 10, "tenant_limit": 90}), 4)
    assert first == {"shed": 0.5, "wait": 0.0, "busy": 0.5}
    assert pressure.of(statistics(waiting=1, predicted_wait=4.0, admitted=20, refused={"queue_full": 10}), 4) == {
        "shed": 0.0,
        "wait": 2.0,
        "busy": 0.0,
    }


# Arguments


def test_key_value_arguments_become_a_command_line():
    words = {"model": "m", "engine_arg": 'a=1 b="x y"', "slo_ttft": "0.5", "verbose": "true"}
    assert from_words(words) == ["--model", "m", "--engine-arg", "a=1", "--engine-arg", "b=x y", "--slo-ttft", "0.5", "--verbose"]
    assert read_settings(from_words(words)).engine.args == ("a=1", "b=x y")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"nonsense": "1"}, "--nonsense"),
        ({"replicas": "0"}, "--replicas"),
        ({"replicas": "3", "max_replicas": "2"}, "--max-replicas 2"),
        ({"tls_client_ca": "x"}, "--tls-client-ca"),
        ({"drain_delay": "1"}, "--drain-delay"),
        ({"port": "80000"}, "--port"),
        ({"engine": "steam"}, "--engine"),
        ({"engines": "auto"}, "--engines auto"),
    ],
)
def test_a_wrong_argument_is_named(words, named):
    with pytest.raises(ConfigurationError, match=named):
        read_settings(from_words(words))


@pytest.mark.parametrize(
    ("engine", "args", "gpu_build", "gpus"),
    [
        ("vllm", [], True, 1),
        ("vllm", ["tensor_parallel_size=2", "pipeline_parallel_size=3"], True, 6),
        ("vllm", ["tensor_parallel_size=2"], False, 0),
        ("simulated", [], True, 0),
    ],
)
def test_a_replica_reserves_the_gpus_that_its_engine_takes(engine, args, gpu_build, gpus, monkeypatch):
    monkeypatch.setattr("llmserve.engines.vllm.args.has_gpu_build", lambda: gpu_build)
    assert read_settings(["--engine", engine, *(word for one in args for word in ("--engine-arg", one))]).gpus == gpus


def test_a_replica_with_several_engines_reserves_the_gpus_of_all(monkeypatch):
    monkeypatch.setattr("llmserve.engines.vllm.args.has_gpu_build", lambda: True)
    assert read_settings(["--engine", "vllm", "--engines", "2", "--engine-arg", "tensor_parallel_size=2"]).gpus == 4


def test_an_ingress_that_other_machines_can_reach_needs_authentication():
    with pytest.raises(ConfigurationError, match=r"--host 0\.0\.0\.0 .*--insecure"):
        application(["--engine", "simulated", "--host", "0.0.0.0"])


def test_a_key_that_would_not_reach_the_replicas_is_refused(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with pytest.raises(ConfigurationError, match=KEY_VARIABLE):
        application([])


# A replica's health


async def test_a_replica_is_unhealthy_when_its_engine_is_given_up_or_its_server_has_ended():
    async with EngineManager(SimulatedEngine(SimulatedConfig())) as manager:
        service: Any = SimpleNamespace(manager=manager)
        following: Any = asyncio.get_running_loop().create_future()
        server = OneProcess("", 0, service, 1.0, following)
        server.check_health()
        manager.state = State.RESTARTING
        server.check_health()
        manager.state = State.FAILED
        with pytest.raises(EngineDead):
            server.check_health()
        manager.state = State.READY
        following.set_exception(RuntimeError("a fault of ours"))
        with pytest.raises(EngineDead, match="server"):
            server.check_health()


# Metrics of the cluster


async def test_while_a_replica_is_unreachable_the_others_last_metrics_are_used():
    """A regression: there were no metrics until Ray had detected the unreachable replica."""
    one = SharedState(lambda: 0.0)
    for name, completed in (("here", 1), ("there", 2), ("cut off", 4)):
        await one.exchange(name, UsageDelta(), told(completed=completed))

    async def silent(_):
        raise LLMServeError("the replicas' metrics could not be collected")

    async def series():
        return "here", []

    async def own():
        return told(completed=1)

    # Of a replica, what is asked there.
    handle = SimpleNamespace(gone=SimpleNamespace(remote=one.gone))
    this: Any = SimpleNamespace(_id="here", _ask_all=silent, _tell=own, _shared_state=handle, own_series=series)
    facts = await Replica.metrics(this)
    assert facts.snapshot(0.0)["requests"]["completed"] == 7
    assert facts.statistics.state is State.READY
    assert await Replica.series(this) == []


# Metrics of several replicas


def test_metrics_of_several_engines_are_combined():
    parts = []
    for number in range(2):
        recorder = MetricsRecorder(SLO(), started=100.0 * number)
        recorder._token_rate.add(50, 100.0 * number + 5)
        engine = EngineStatistics(running=number, kv_usage=number / 4, steps=10)
        told = statistics(
            engine=engine, running=number, admitted=3, refused={"queue_full": 1}, predicted_wait=float(number), drain_rate=2.0
        )
        parts.append(MetricsSnapshot(told, recorder))
    # The second replica's clock is 100 s ahead of the first one's.
    whole = MetricsSnapshot.of_engines([parts[0], parts[1].shifted(-100.0)])
    found = whole.snapshot(10.0)
    assert found["admission"]["limit"] == 8
    assert found["admission"]["refused"] == {"queue_full": 2}
    assert found["admission"]["predicted_wait"] == 0.0
    assert (found["engine"]["running"], found["engine"]["kv_usage"]) == (1, 0.25)
    assert found["tokens"]["per_second"] == 10.0
    assert parts[1].recorder.started == 100.0
    assert (
        MetricsSnapshot.of_engines([attrs.evolve(parts[0], statistics=statistics(limit=None)), parts[1]]).statistics.admission.limit is None
    )
