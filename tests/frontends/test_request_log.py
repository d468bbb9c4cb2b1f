"""The request log: the requests that have a line, and the line's content."""

import json

import anyio
import pytest
from engines import ScriptedEngine
from http_support import running_server

from frontends.access.api_keys import Key, Keys, digest
from frontends.access.control import Access
from frontends.http.access_log import PROBES
from llmserve import AdmissionConfig, EngineError, ManagerConfig, TenantLimits, TenantTable

TEXT = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True}
WITHOUT = {"outcome": None, "reason": None, "queue": None, "ttft": None, "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}


class Log(list):
    """A log whose lines can be read immediately."""

    def __call__(self, data):
        assert data.endswith(b"\n")
        self.append(json.loads(data))


@pytest.fixture
def log():
    return Log()


async def line(log, count=1):
    """Return line number `count`, which is written when the response has ended."""
    with anyio.fail_after(5):
        while len(log) < count:
            await anyio.sleep(0.001)
    return log[count - 1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", TEXT),
        ("/v1/completions", TEXT),
        ("/v1/chat/completions", {**TEXT, "prompt": None, "messages": [{"role": "user", "content": "hello"}]}),
    ],
)
async def test_a_line_has_the_answer_s_tokens_and_times(log, path, body, stream):
    async with running_server(app={"log": log}, step_seconds=0.001, time_scale=1.0) as server:
        sent = {key: value for key, value in body.items() if value is not None}
        async with server.session.post(path, json={**sent, "stream": stream}) as response:
            assert response.status == 200
            await response.read()
        found = await line(log)
        recorded = server.manager.metrics()["tokens"]
    assert (found["outcome"], found["reason"], found["status"]) == ("completed", None, 200)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (recorded["prompt"], 4)
    assert 0 <= found["queue"] <= found["ttft"] <= found["seconds"]
    assert found["tenant"] is None


async def test_choices_of_one_prompt_count_it_once_as_usage_does(log):
    async with running_server(app={"log": log}) as server:
        _, body, _ = await server.post("/v1/completions", {**TEXT, "prompt": ["hello", "hi there"], "n": 3})
        found = await line(log)
    assert {name: found[name] for name in ("prompt_tokens", "completion_tokens")} == {
        name: body["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    }
    assert found["completion_tokens"] == 24


async def test_a_refusal_has_its_reason(log):
    config = ManagerConfig(drain_timeout=0.01, admission=AdmissionConfig(max_running=1, max_waiting=0))
    async with running_server(ScriptedEngine(), config, app={"log": log}) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.post, "/generate", TEXT)
        while not server.manager.engine.sinks:
            await anyio.sleep(0.001)
        status, _, _ = await server.post("/v1/completions", TEXT)
        found = await line(log)
        assert (status, found["outcome"], found["reason"], found["ttft"]) == (503, "refused", "queue_full", None)
        tasks.cancel_scope.cancel()


async def test_a_client_that_leaves_is_cancelled_and_a_failed_engine_has_failed(log):
    engine = ScriptedEngine()
    async with running_server(engine, ManagerConfig(drain_timeout=0.01), app={"log": log}) as server:
        for count, (end, outcome) in enumerate([("leave", "cancelled"), ("fail", "failed")], 1):
            engine.sinks.clear()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.post, "/generate", TEXT)
                await engine.asked()
                if end == "leave":
                    tasks.cancel_scope.cancel()
                else:
                    next(iter(engine.sinks.values())).fail(EngineError("broken"))
            found = await line(log, count)
            assert (found["outcome"], found["status"]) == (outcome, {"leave": 499, "fail": 500}[end])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_one_choice_is_the_reason_and_not_that_the_others_were_cancelled(log, stream):
    config = ManagerConfig(drain_timeout=0.01, admission=AdmissionConfig(max_running=1, max_waiting=2))
    async with running_server(ScriptedEngine(), config, app={"log": log}) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.post, "/generate", TEXT)
        while not server.manager.engine.sinks:
            await anyio.sleep(0.001)
        status, _, _ = await server.post("/v1/completions", {**TEXT, "n": 3, "stream": stream})
        found = await line(log)
        assert (status, found["status"], found["outcome"], found["reason"]) == (503, 503, "refused", "queue_full")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("body", "headers", "status", "outcome"),
    [(TEXT, {"X-Request-Timeout": "0.05"}, 504, "deadline"), ({"prompt": "hi" * 1000}, {}, 400, "invalid")],
)
async def test_a_deadline_and_a_prompt_that_does_not_fit_are_distinguished(log, body, headers, status, outcome):
    async with running_server(ScriptedEngine(), ManagerConfig(drain_timeout=0.01), app={"log": log}) as server:
        await server.post("/v1/completions", body, headers=headers)
        found = await line(log)
    assert (found["status"], found["outcome"], found["reason"]) == (status, outcome, None)
    assert (found["ttft"], found["completion_tokens"]) == (None, 0)


async def test_a_request_that_reaches_no_engine_has_a_line_without_counts(log):
    async with running_server(app={"log": log}) as server:
        assert (await server.post("/v1/completions", {"prompt": 1}))[0] == 400
        async with server.session.get("/v1/models") as response:
            assert response.status == 200
        for count in (1, 2):
            assert (await line(log, count)).items() >= WITHOUT.items()


async def test_probes_have_no_lines_by_default(log):
    every = Log()
    for app in ({"log": log}, {"log": every, "log_probes": True}):
        async with running_server(app=app) as server:
            for path in ("/health", "/ping", "/metrics", "/load", "/health/live"):
                async with server.session.get(path) as response:
                    assert response.status == 200
            await server.post("/v1/completions", TEXT)
            await line(app["log"], 1 if app["log"] is log else 6)
    assert [one["route"] for one in log] == ["/v1/completions"]
    assert {one["route"] for one in every} - {"/v1/completions"} <= PROBES


async def test_a_tenant_is_logged_by_its_key_or_if_the_operator_has_named_it(log):
    table = TenantTable(named={"web": TenantLimits()})
    config = ManagerConfig(drain_timeout=1, admission=AdmissionConfig(tenants=table))
    async with running_server(config=config, app={"log": log}) as server:
        for count, (user, tenant) in enumerate([("web", "web"), ("jane@example.com", None), (None, None)], 1):
            await server.post("/v1/completions", {**TEXT, "user": user})
            assert (await line(log, count))["tenant"] == tenant
    keyed = Log()
    async with running_server(app={"log": keyed, "access": Access(Keys([Key("one", digest("k"), "acme")]))}) as server:
        await server.post("/v1/completions", TEXT, headers={"Authorization": "Bearer k"})
    assert (await line(keyed))["tenant"] == "acme"


@pytest.mark.parametrize("cancel", [False, True])
async def test_the_line_of_a_response_in_the_background_has_its_end(log, cancel):
    engine, path = ScriptedEngine(), "/v1/responses"
    async with running_server(engine, app={"log": log}) as server:
        _, queued, _ = await server.post(path, {"input": "hello", "background": True})
        with anyio.fail_after(5):
            await engine.asked()
        assert log == []
        if cancel:
            await server.post(f"{path}/{queued['id']}/cancel", {})
        else:
            (name,) = engine.sinks
            engine.finish(name, "a")
        await line(log, 1 + cancel)
    (found,) = [one for one in log if one["route"] == path]
    assert (found["answer"], found["status"]) == (queued["id"], 200)
    assert (found["outcome"], found["completion_tokens"] > 0) == (("cancelled", False) if cancel else ("completed", True))
    assert found["prompt_tokens"] > 0
