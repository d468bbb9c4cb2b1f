"""Load balancers: /version, /ping, /load, ORCA, the generating check, vLLM's queue series."""

import json

import anyio
import pytest
from engines import ScriptedEngine
from http_support import running_server
from program_support import Streams, fetch, program
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families as parse_text

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.http import health
from frontends.http.health import ASK_HEADER, LOAD_HEADER, GenerateCheck
from frontends.http.openapi import document
from llmserve import AdmissionConfig, ManagerConfig, TenantLimits, TenantTable
from llmserve.request import Delta

FULL = ManagerConfig(drain_timeout=0.01, admission=AdmissionConfig(max_running=1, max_waiting=4))
ENDLESS = {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True, "stream": True}


async def get(server, path, **headers):
    async with server.session.get(path, headers=headers) as response:
        return response.status, await response.json(), response.headers


async def fill(server, tasks, count):
    """Open `count` endless requests, of which one runs."""

    async def ask():
        async with server.session.post("/generate", json=ENDLESS) as response:
            await response.read()

    for _ in range(count):
        tasks.start_soon(ask)
    while server.manager.statistics().open < count:
        await anyio.sleep(0.001)


async def test_version_is_the_engine_s_as_in_vllm(server):
    status, body, _ = await get(server, "/version")
    assert (status, body) == (200, {"version": server.manager.info.version})


async def test_ping_needs_no_key_by_get_and_by_post():
    async with running_server(app={"access": Access(Keys.single("k"))}) as server:
        assert (await get(server, "/ping"))[0] == 200
        async with server.session.post("/ping") as response:
            assert response.status == 200
        assert (await get(server, "/load"))[0] == 401


async def test_load_counts_running_and_waiting_requests():
    async with running_server(config=FULL, time_scale=1.0) as server, anyio.create_task_group() as tasks:
        assert (await get(server, "/load"))[1] == {"server_load": 0, "running": 0, "waiting": 0, "limit": 1}
        await fill(server, tasks, 3)
        assert (await get(server, "/load"))[1] == {"server_load": 3, "running": 1, "waiting": 2, "limit": 1}
        tasks.cancel_scope.cancel()


async def test_an_answer_has_the_load_if_its_request_asks_for_it():
    async with running_server(config=FULL, time_scale=1.0) as server, anyio.create_task_group() as tasks:
        await fill(server, tasks, 3)
        _, _, headers = await get(server, "/v1/models", **{ASK_HEADER: "TEXT"})
        form, _, pairs = headers[LOAD_HEADER].partition(" ")
        found = dict(pair.split("=") for pair in pairs.split(", "))
        usage = found.pop("named_metrics.kv_cache_usage_perc")
        assert form == "TEXT"
        assert found == {
            "application_utilization": "3.0",
            "named_metrics.num_requests_waiting": "2.0",
            "named_metrics.num_requests_running": "1.0",
        }
        assert 0 <= float(usage) <= 1
        # In upper or lower case, as in vLLM.
        form, _, report = (await get(server, "/v1/models", **{ASK_HEADER: "json"}))[2][LOAD_HEADER].partition(" ")
        assert form == "JSON"
        assert json.loads(report)["named_metrics"]["num_requests_waiting"] == 2.0
        assert LOAD_HEADER not in (await get(server, "/v1/models"))[2]
        assert LOAD_HEADER not in (await get(server, "/v1/models", **{ASK_HEADER: "BIN"}))[2]
        tasks.cancel_scope.cancel()


async def test_streams_carry_the_load_and_clients_without_a_key_do_not_learn_it(server):
    async with server.session.post("/generate", json=ENDLESS | {"max_tokens": 2}, headers={ASK_HEADER: "TEXT"}) as response:
        assert response.headers[LOAD_HEADER].startswith("TEXT ")
    async with running_server(app={"access": Access(Keys.single("k"))}) as closed:
        for path, status in (("/v1/models", 401), ("/ping", 200)):
            found, _, headers = await get(closed, path, **{ASK_HEADER: "TEXT"})
            assert (found, LOAD_HEADER in headers) == (status, False)


# The generating check


def checking(**check):
    """Yield an app with a check, which is created when the manager exists."""
    return lambda manager: {"check": GenerateCheck(manager, **{"interval": 1000.0, **check})}


async def test_the_check_sends_one_token_and_then_none_until_its_interval_is_over():
    async with running_server(app_of=checking()) as server:
        for _ in range(5):
            for path in ("/health/generate", "/health_generate"):
                assert (await get(server, path))[0] == 200
        assert server.manager.statistics().engine.generation_tokens == 1
    async with running_server(app_of=checking(interval=1e-9)) as server:
        for _ in range(3):
            assert (await get(server, "/health/generate"))[0] == 200
        assert server.manager.statistics().engine.generation_tokens == 3


async def test_without_the_option_the_route_does_not_exist(server):
    assert (await get(server, "/health/generate"))[0] == 404
    assert "/health/generate" not in document("1", keys=False, checks=False, root="")["paths"]
    assert {"/health/generate", "/health_generate"} < set(document("1", keys=False, checks=True, root="")["paths"])


async def test_an_engine_that_makes_no_token_fails_it_although_the_server_is_ready(monkeypatch):
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.05)
    engine = ScriptedEngine()
    async with running_server(engine, ManagerConfig(drain_timeout=0.01), app_of=checking()) as server:
        assert (await get(server, "/health"))[0] == 200
        status, body, headers = await get(server, "/health/generate")
        assert (status, headers["Retry-After"]) == (503, "1000")
        assert "no token" in body["error"]["message"]
        # The engine's request was cancelled too.
        assert not engine.held


async def test_a_probe_that_leaves_does_not_end_the_check_and_others_join_it():
    engine = ScriptedEngine()
    async with running_server(engine, ManagerConfig(drain_timeout=0.01), app_of=checking()) as server:
        async with anyio.create_task_group() as probe:
            probe.start_soon(get, server, "/health/generate")
            await engine.asked()
            probe.cancel_scope.cancel()
        answers = []
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask_and_note, server, answers)
            (sink,) = engine.sinks.values()
            sink.put(Delta("", (7,), "length"))
        assert answers == [200, 200, 200]


async def ask_and_note(server, answers):
    answers.append((await get(server, "/health/generate"))[0])


async def test_a_full_server_whose_engine_makes_tokens_is_well():
    config = ManagerConfig(drain_timeout=0.01, admission=AdmissionConfig(max_running=1, max_waiting=0))
    async with running_server(config=config, time_scale=0.1, app_of=checking()) as server, anyio.create_task_group() as tasks:
        await fill(server, tasks, 1)
        with anyio.fail_after(10):
            assert (await get(server, "/health/generate"))[0] == 200
        assert server.manager.metrics()["admission"]["refused"] == {"queue_full": 1}
        tasks.cancel_scope.cancel()


async def test_a_table_that_refuses_unknown_tenants_does_not_refuse_the_check():
    table = TenantTable(named={"web": TenantLimits()}, default=None)
    config = ManagerConfig(drain_timeout=0.01, admission=AdmissionConfig(tenants=table))
    async with running_server(config=config, app_of=checking()) as server:
        assert (await get(server, "/health/generate"))[0] == 200


# vLLM's series


def queue_of_vllm(engines):
    registry = CollectorRegistry()
    waiting = Gauge("vllm:num_requests_waiting", "x", ["engine"], registry=registry)
    reasons = Gauge("vllm:num_requests_waiting_by_reason", "x", ["engine", "reason"], registry=registry)
    running = Gauge("vllm:num_requests_running", "x", ["engine"], registry=registry)
    for engine in range(engines):
        waiting.labels(engine).set(1)
        running.labels(engine).set(5)
        reasons.labels(engine, "capacity").set(1)
        reasons.labels(engine, "deferred").set(0)

    async def series():
        return registry.collect()

    return series


@pytest.mark.parametrize(("engines", "waiting"), [(1, [4]), (2, [3, 2])])
async def test_vllm_s_queue_has_ours_in_it(engines, waiting):
    app = {"series": queue_of_vllm(engines)}
    async with running_server(config=FULL, time_scale=1.0, app=app) as server, anyio.create_task_group() as tasks:
        await fill(server, tasks, 4)
        for _ in range(2):
            async with server.session.get("/metrics", headers={"Accept": "text/plain"}) as response:
                families = {family.name: family.samples for family in parse_text(await response.text())}
            assert [one.value for one in families["vllm:num_requests_waiting"]] == waiting
            assert [one.value for one in families["vllm:num_requests_running"]] == [5] * engines
            by_reason = [(one.labels["reason"], one.value) for one in families["vllm:num_requests_waiting_by_reason"]]
            assert [value for reason, value in by_reason if reason == "capacity"] == waiting
            assert {value for reason, value in by_reason if reason == "deferred"} == {0}
        assert [one.labels["version"] for one in families["llmserve_build_info"]]
        tasks.cancel_scope.cancel()


async def test_with_workers_the_load_is_that_of_all_workers(tmp_path):
    slow = ("--engine-arg", "step_seconds=0.05", "--generate-check", "60", "--max-running", "1", "--max-waiting", "8")
    async with program(tmp_path, "--workers", "2", *slow) as (_, url, _), Streams(url) as streams:
        for path in ("/ping", "/version", "/health/generate"):
            assert (await fetch(f"{url}{path}"))[0] == 200
        await streams.begin()
        # Waiting requests have no headers yet.
        async with anyio.create_task_group() as waiting:
            for _ in range(2):
                waiting.start_soon(streams.begin)
            wanted, found = {"server_load": 3, "running": 1, "waiting": 2, "limit": 1}, None
            with anyio.move_on_after(20):
                while found != wanted:
                    found = json.loads((await fetch(f"{url}/load"))[1])
            waiting.cancel_scope.cancel()
        assert found == wanted
