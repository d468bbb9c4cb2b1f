"""Stored responses: their bounds and owners, several workers, and the ends of those in the background."""

import asyncio
import json
import logging
import signal
import weakref
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from engines import ScriptedEngine
from http_support import running_server
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from program_support import fetch, metrics, program, until, workers_of
from quiescence import check_quiescent

from frontends.access.api_keys import Key, Keys, digest
from frontends.access.caller import Caller
from frontends.access.control import Access
from frontends.answers import background
from frontends.answers.generation import Generation
from frontends.answers.served_model import ServedModel
from frontends.cluster.replica_server import ReplicaSettings
from frontends.cluster.settings import ClusterServerSettings
from frontends.http.app import build_app
from frontends.http.responses import PIECE
from frontends.http.routes.responses import PAGE_BYTES
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from frontends.responses import requests
from frontends.responses.memory import KEEP_SECONDS, ResponseMemory
from frontends.responses.stored import OVERHEAD, RUNNING, Name, Operation, StoredResponse
from frontends.workers.messages import StoreReply, StoreRequest
from frontends.workers.responses import LOST, ResponsesClient, ResponsesServer
from llmserve import AdmissionConfig, EngineError, EngineManager, ManagerConfig

PATH = "/v1/responses"
HI = {"input": "hi", "max_output_tokens": 5, "temperature": 0}
ENDLESS = {**HI, "background": True, "max_output_tokens": 1900, "ignore_eos": True}
PATIENCE = 60


async def ended(server, name):
    """Return a response when it has ended."""
    with anyio.fail_after(PATIENCE):
        while True:
            async with server.session.get(f"{PATH}/{name}") as response:
                assert response.status == 200, await response.text()
                found = await response.json()
            if found["status"] not in ("queued", "in_progress"):
                return found
            await anyio.sleep(0.01)


async def quiet(server):
    with anyio.fail_after(PATIENCE):
        while server.manager.statistics().open:
            await anyio.sleep(0.01)


# Which responses are kept, and for whom


async def test_a_tenant_cannot_see_another_s_responses():
    keys = Keys(Key(name, digest(name), tenant) for name, tenant in (("a1", "a"), ("a2", "a"), ("b", "b")))
    async with running_server(app={"access": Access(keys)}) as server:

        def headers(key):
            return {"Authorization": f"Bearer {key}"}

        _, answer, _ = await server.post(PATH, HI, headers=headers("a1"))
        found = {}
        for key in ("a2", "b"):
            for method, path in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
                async with server.session.request(method, f"{PATH}/{answer['id']}{path}", headers=headers(key)) as response:
                    found[key, method, path] = response.status
            status, error, _ = await server.post(PATH, {**HI, "previous_response_id": answer["id"]}, headers=headers(key))
            assert (status, error["error"]["code"]) == (400, "previous_response_not_found")
        # The first one of these deletes it in the end.
        assert [status for (key, *_), status in found.items() if key == "a2"] == [200, 200, 400, 200]
        assert [status for (key, *_), status in found.items() if key == "b"] == [404, 404, 404, 404]


async def test_another_tenant_cannot_delete_a_response():
    keys = Keys(Key(name, digest(name), name) for name in ("a", "b"))
    async with running_server(app={"access": Access(keys)}) as server:
        a, b = ({"Authorization": f"Bearer {key}"} for key in ("a", "b"))
        _, answer, _ = await server.post(PATH, HI, headers=a)
        for headers, status in ((b, 404), (a, 200)):
            async with server.session.delete(f"{PATH}/{answer['id']}", headers=headers) as response:
                assert response.status == status


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_keeps_none_says_so(stream):
    async with running_server(app={"responses": ResponseMemory(lambda: 0.0, 0)}) as server:
        async with server.session.post(PATH, json={**HI, "store": True, "stream": stream}) as response:
            assert response.status == 200
            assert b'"store":false' in await response.read()
        for fields, param in (({"previous_response_id": "x"}, "previous_response_id"), ({"background": True}, "background")):
            status, error, _ = await server.post(PATH, {**HI, **fields, "stream": stream})
            assert (status, error["error"]["param"]) == (400, param)
            assert "keeps no responses" in error["error"]["message"]
        async with server.session.get(f"{PATH}/x") as response:
            assert response.status == 404
            assert "keeps no responses" in await response.text()


@pytest.mark.parametrize(
    ("bound", "most", "large", "told"),
    [("MAX_BYTES", 400, "x" * 400, "400 bytes"), ("MAX_ITEMS", 2, [{"role": "user", "content": "a"}] * 3, "2 items")],
)
async def test_a_response_with_too_many_items_is_not_kept(monkeypatch, bound, most, large, told):
    monkeypatch.setattr(requests, bound, most)
    async with running_server() as server:
        _, kept, _ = await server.post(PATH, HI)
        _, not_kept, _ = await server.post(PATH, {**HI, "input": large})
        assert (kept["store"], not_kept["store"]) == (True, False)
        status, error, _ = await server.post(PATH, {**HI, "input": large, "background": True})
        assert (status, error["error"]["param"]) == (400, "background")
        assert told in error["error"]["message"]


async def test_the_items_of_the_conversation_count_too(monkeypatch):
    monkeypatch.setattr(requests, "MAX_ITEMS", 4)
    async with running_server() as server:
        kept, name = [], None
        while len(kept) < 3:
            _, answer, _ = await server.post(PATH, {**HI, "previous_response_id": name})
            kept.append(answer["store"])
            name = answer["id"] if answer["store"] else name
        assert kept == [True, True, False]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_without_room_leaves_the_others(stream):
    memory = ResponseMemory(asyncio.get_running_loop().time, max_bytes=3000)
    async with running_server(app={"responses": memory}) as server:
        _, small, _ = await server.post(PATH, HI)
        async with server.session.post(PATH, json={**HI, "input": "x" * 1500, "stream": stream}) as response:
            last = (await response.text()).strip().splitlines()[-1].removeprefix("data: ")
        found = json.loads(last).get("response") or json.loads(last)
        assert (found["status"], found["store"]) == ("incomplete", False)
        status, error, _ = await server.post(PATH, {**HI, "input": "x" * 1500, "background": True})
        assert (status, error["error"]["param"]) == (400, "background")
        assert "--stored-response-bytes" in error["error"]["message"]
        async with server.session.get(f"{PATH}/{small['id']}") as response:
            assert await response.json() == small
        assert (len(memory.entries), server.manager.statistics().open) == (1, 0)


async def test_an_answer_that_fails_or_is_left_is_not_kept():
    memory = ResponseMemory(asyncio.get_running_loop().time)
    async with running_server(ScriptedEngine(), app={"responses": memory}) as server:
        with anyio.move_on_after(0.2):
            await server.post(PATH, HI)
        await quiet(server)
        assert len(memory.entries) == 0


@pytest.mark.parametrize("value", ["true", "1", "True"])
async def test_a_stored_response_is_not_streamed(server, value):
    _, answer, _ = await server.post(PATH, HI)
    async with server.session.get(f"{PATH}/{answer['id']}", params={"stream": value}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "stream")
    async with server.session.get(f"{PATH}/{answer['id']}", params={"stream": "false"}) as response:
        assert await response.json() == answer


async def test_a_large_conversation_can_be_continued(server):
    """It is decoded in turns with other large bodies."""
    items = [{"role": role, "content": "x" * 10} for _ in range(30) for role in ("user", "assistant")]
    _, first, _ = await server.post(PATH, {**HI, "input": items})
    for count in range(2, 5):
        _, after, _ = await server.post(PATH, {**HI, "previous_response_id": first["id"]})
        assert after["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        first = after
        async with server.session.get(f"{PATH}/{first['id']}/input_items", params={"limit": 100}) as response:
            assert len((await response.json())["data"]) == 60 + 2 * (count - 1)


async def test_a_page_of_items_is_short_and_a_client_that_does_not_read_holds_it_once():
    texts = [*(str(number) * 1000 for number in range(1000)), "x" * (2 * PAGE_BYTES)]
    items = msgspec.json.encode([{"id": f"item-{number}", "text": text} for number, text in enumerate(texts)])
    memory = ResponseMemory(asyncio.get_running_loop().time)
    memory.do(Operation("add", Name(None, "x"), StoredResponse("completed", False, items, items)))
    async with running_server(app={"responses": memory}) as server:
        query, found, more = {"limit": "100", "order": "asc"}, [], True
        while more:
            async with server.session.get(f"{PATH}/x/input_items", params=query) as response:
                # A longer body has no length: it is written in pieces.
                assert (response.content_length or 0) <= PIECE
                body = await response.read()
            shown = json.loads(body)
            more, query["after"] = shown["has_more"], shown["last_id"]
            assert len(body) < PAGE_BYTES + 1000 or len(shown["data"]) == 1
            found += [item["text"] for item in shown["data"]]
        assert found == texts
        async with server.session.get(f"{PATH}/x") as response:
            assert (response.content_length, await response.read()) == (None, items)


# In the background


async def test_a_background_response_runs_when_it_is_admitted():
    engine = ScriptedEngine()
    async with running_server(engine, ManagerConfig(drain_timeout=1, admission=AdmissionConfig(max_running=1))) as server:
        _, first, _ = await server.post(PATH, {**HI, "background": True})
        with anyio.fail_after(PATIENCE):
            await engine.asked()
        _, second, _ = await server.post(PATH, {**HI, "background": True})
        found = {}
        with anyio.fail_after(PATIENCE):
            while found != {first["id"]: "in_progress", second["id"]: "queued"}:
                for name in (first["id"], second["id"]):
                    async with server.session.get(f"{PATH}/{name}") as response:
                        found[name] = (await response.json())["status"]
        status, error, _ = await server.post(PATH, {**HI, "previous_response_id": first["id"]})
        assert (status, error["error"]["param"]) == (400, "previous_response_id")
        (sink,) = engine.sinks.values()
        sink.fail(EngineError("bad luck"))
        failed = await ended(server, first["id"])
        assert (failed["status"], failed["error"]) == ("failed", {"code": "engine_error", "message": "bad luck"})


async def test_a_background_response_that_is_refused_at_once_is_not_kept(monkeypatch):
    monkeypatch.setattr(background, "REFUSAL_SECONDS", PATIENCE)
    memory = ResponseMemory(asyncio.get_running_loop().time)
    config = ManagerConfig(drain_timeout=1, admission=AdmissionConfig(max_running=1, max_waiting=0))
    async with running_server(ScriptedEngine(), config, app={"responses": memory}) as server:
        assert (await server.post(PATH, {**HI, "background": True}))[0] == 200
        status, error, headers = await server.post(PATH, {**HI, "background": True})
        assert (status, error["error"]["code"], int(headers["Retry-After"]) > 0) == (503, "overloaded", True)
        assert len(memory.entries) == 1


async def test_a_background_response_that_is_refused_later_has_failed(monkeypatch):
    monkeypatch.setattr(background, "REFUSAL_SECONDS", 0)
    config = ManagerConfig(drain_timeout=1, admission=AdmissionConfig(max_running=1, max_wait=0.2))
    async with running_server(ScriptedEngine(), config) as server:
        names = [(await server.post(PATH, {**HI, "background": True}))[1]["id"] for _ in range(2)]
        failed = await ended(server, names[1])
        assert (failed["status"], failed["error"]["code"]) == ("failed", "overloaded")


async def test_an_unexpected_error_ends_it_too(monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("frontends.responses.response_builder.ResponsesResponseBuilder.whole", fail)
    async with running_server() as server:
        _, queued, _ = await server.post(PATH, {**HI, "background": True})
        with caplog.at_level(logging.ERROR):
            failed = await ended(server, queued["id"])
        assert (failed["status"], "internal error" in failed["error"]["message"]) == ("failed", True)
        assert queued["id"] in caplog.text


async def test_an_idempotency_key_cancels_each_response_that_a_path_names():
    async with running_server(time_scale=1.0) as server:
        for _ in range(2):
            _, queued, _ = await server.post(PATH, ENDLESS)
            for replayed in (None, "true"):
                async with server.session.post(f"{PATH}/{queued['id']}/cancel", headers={"Idempotency-Key": "k"}) as response:
                    found = await response.json()
                assert (found["id"], found["status"]) == (queued["id"], "cancelled")
                assert response.headers.get("Idempotent-Replayed") == replayed


async def test_a_prompt_that_is_too_long_is_refused_at_once(server, monkeypatch):
    monkeypatch.setattr(background, "REFUSAL_SECONDS", PATIENCE)
    status, error, _ = await server.post(PATH, {**HI, "background": True, "input": "x" * 5000})
    assert (status, error["error"]["code"]) == (400, "context_length_exceeded")


async def test_the_end_of_the_application_cancels_them():
    """Its manager may go on."""
    async with EngineManager.open("sim", engine="simulated") as manager:
        before = asyncio.all_tasks()
        async with running(build_app(manager)) as acceptor, listen(acceptor, listener := bind("127.0.0.1", 0)):
            for _ in range(3):
                assert (await fetch(f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}", ENDLESS))[0] == 200
            assert asyncio.all_tasks() - before
        assert not asyncio.all_tasks() - before
        check_quiescent(manager)


async def test_closing_waits_for_the_responses():
    async with running_server(time_scale=1.0) as server:
        before = asyncio.all_tasks()
        generation = Generation(ServedModel(server.manager, "sim"), ResponseMemory(asyncio.get_running_loop().time))
        for _ in range(3):
            async for _ in await generation.whole(*await generation.parse(PATH, msgspec.json.encode(ENDLESS), Caller())):
                pass
        await generation.close()
        assert not asyncio.all_tasks() - before


def test_replicas_on_ray_serve_keep_none():
    settings = ReplicaSettings.of(ClusterServerSettings(), "127.0.0.1", "secret")
    assert not ResponseMemory(lambda: 0.0, settings.http.stored_responses).keeps


@pytest.mark.parametrize("finishes", [True, False])
async def test_while_a_server_drains_its_background_responses_end(finishes):
    engine = ScriptedEngine()
    async with running_server(engine) as server:
        _, queued, _ = await server.post(PATH, {**HI, "background": True})
        with anyio.fail_after(PATIENCE):
            await engine.asked()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.manager.drain)
            if finishes:
                (name,) = engine.sinks
                engine.finish(name, "a")
            else:
                server.manager.cancel_all("the server is stopping")
        found = await ended(server, queued["id"])
    if finishes:
        assert (found["status"], found["output"][0]["content"][0]["text"]) == ("completed", "a")
    else:
        assert (found["status"], found["error"]) == ("failed", {"code": "unavailable", "message": "the server is stopping"})


def of_tenants(*tenants):
    """Return an access with a key for each tenant, and each one's headers."""
    access = Access(Keys(Key(name, digest(name), name) for name in tenants))
    return access, [{"Authorization": f"Bearer {name}"} for name in tenants]


async def test_responses_that_run_are_spared_unless_another_tenant_needs_their_room():
    access, (a, b) = of_tenants("a", "b")
    memory = ResponseMemory(asyncio.get_running_loop().time, max_responses=2)
    async with running_server(app={"responses": memory, "access": access}, time_scale=1.0) as server:
        first, second = [(await server.post(PATH, ENDLESS, headers=a))[1] for _ in range(2)]
        assert (await server.post(PATH, ENDLESS, headers=a))[0] == 400
        assert (await server.post(PATH, HI, headers=a))[1]["store"] is False
        _, other, _ = await server.post(PATH, HI, headers=b)
        found = {}
        for name, headers in ((first["id"], a), (second["id"], a), (other["id"], b)):
            async with server.session.get(f"{PATH}/{name}", headers=headers) as response:
                found[name] = response.status
        assert found == {first["id"]: 200, second["id"]: 404, other["id"]: 200}
        async with server.session.post(f"{PATH}/{first['id']}/cancel", headers=a) as response:
            assert (await response.json())["status"] == "cancelled"
        await quiet(server)
        # The one without room, the dropped one and the last one.
        assert server.manager.metrics()["requests"]["cancelled"] == 3


def test_a_response_that_begins_to_run_needs_no_more_room():
    sizes = {status: StoredResponse(status, True, b"[]", msgspec.json.encode({"status": status})).size for status in RUNNING}
    assert len(set(sizes.values())) == 1


class SlowStore:
    """A store that answers when the test says so, as one in another process."""

    keeps = True

    def __init__(self):
        self.memory = ResponseMemory(asyncio.get_running_loop().time)
        self.go = asyncio.Event()
        self.asked = []

    async def ask(self, operation, stop=None):
        self.asked.append(operation.kind)
        await self.go.wait()
        return self.memory.do(operation, stop)


async def test_a_client_that_leaves_before_it_knows_the_id_leaves_nothing():
    store = SlowStore()
    async with running_server(time_scale=1.0) as server:
        generation = Generation(ServedModel(server.manager, "sim"), store)
        wanted, builder = await generation.parse(PATH, msgspec.json.encode(ENDLESS), Caller())
        answering = asyncio.ensure_future(anext(await generation.whole(wanted, builder)))
        with anyio.fail_after(PATIENCE):
            while not store.asked:
                await anyio.sleep(0.01)
            answering.cancel()
            await asyncio.wait([answering])
            store.go.set()
            while "delete" not in store.asked:
                await anyio.sleep(0.01)
        await quiet(server)
        await generation.close()
        assert len(store.memory.entries) == 0


# Several workers


@asynccontextmanager
async def two_workers(tmp_path, *more):
    async with program(tmp_path, "--workers", "2", "--engine-arg", "step_seconds=0.02", *more) as (process, url, _):

        async def ask(method, path, body=None):
            """Ask on a new connection, which the supervisor gives to either worker."""
            status, found = await fetch(f"{url}{path}", body, method=method)
            return status, json.loads(found)

        yield process, url, ask


async def test_each_worker_has_the_responses_of_all(tmp_path):
    async with two_workers(tmp_path) as (process, url, ask):
        answers = [(await ask("POST", PATH, HI))[1] for _ in range(4)]
        for answer in answers:
            for _ in range(3):
                assert await ask("GET", f"{PATH}/{answer['id']}") == (200, answer)
            status, after = await ask("POST", PATH, {**HI, "previous_response_id": answer["id"]})
            assert (status, after["usage"]["input_tokens"] > answer["usage"]["input_tokens"]) == (200, True)
        # Cancelled and deleted by any worker, in the one that makes them.
        running = [(await ask("POST", PATH, ENDLESS))[1]["id"] for _ in range(6)]
        await until(url, lambda found: found["open"] == 6)
        for name in running[:3]:
            assert (await ask("POST", f"{PATH}/{name}/cancel"))[1]["status"] == "cancelled"
        for name in running[3:]:
            assert (await ask("DELETE", f"{PATH}/{name}"))[0] == 200
        found = await until(url, lambda found: found["open"] == 0)
        assert found["requests"]["cancelled"] == 6
        assert {(await ask("GET", f"{PATH}/{name}"))[0] for name in running[3:]} == {404}
        for worker in workers_of(process)[:1]:
            worker.kill()
        await until(url, lambda found: found["open"] == 0)
        assert await ask("GET", f"{PATH}/{answers[0]['id']}") == (200, answers[0])


async def test_the_responses_of_a_worker_that_dies_have_failed(tmp_path):
    async with two_workers(tmp_path) as (process, url, ask):
        running = [(await ask("POST", PATH, ENDLESS))[1]["id"] for _ in range(4)]
        await until(url, lambda found: found["open"] == 4)
        for worker in workers_of(process):
            worker.kill()
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    found = [(await ask("GET", f"{PATH}/{name}"))[1] for name in running]
                except OSError:
                    # The connection came to a worker that was dying.
                    continue
                if all(one.get("status") == "failed" for one in found):
                    break
                await anyio.sleep(0.05)
        assert all(one["error"] == LOST for one in found)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_ends_after_its_drain_although_responses_run(tmp_path, workers):
    options = ("--workers", workers, "--drain-timeout", "0.5", "--engine-arg", "step_seconds=1")
    async with program(tmp_path, *options) as (process, url, lines):
        for _ in range(3):
            assert (await fetch(f"{url}{PATH}", ENDLESS))[0] == 200
        await until(url, lambda found: found["open"] == 3)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE):
            assert await process.wait() == 0
    assert "Traceback" not in "".join(lines)


async def test_workers_without_a_store(tmp_path):
    async with two_workers(tmp_path, "--stored-responses", "0") as (_, url, ask):
        assert (await ask("POST", PATH, HI))[1]["store"] is False
        assert (await ask("POST", PATH, ENDLESS))[0] == 400
        assert (await metrics(url))["open"] == 0


def response_of(status="completed", size=0, background=False):
    return StoredResponse(status, background, b"[]", msgspec.json.encode({"status": status, "text": "x" * size}))


async def adding(memory):
    """Add a worker's response; return both sides, the worker's question and what its end sets."""
    mail, stopped = [], asyncio.Event()
    client = ResponsesClient(mail.append, keeps=True)
    server = ResponsesServer(memory, client.receive)
    asking = asyncio.create_task(client.ask(Operation("add", Name(None, "x"), response_of("queued")), stopped.set))
    await asyncio.sleep(0)
    server.receive(mail.pop())
    return client, server, asking, stopped


async def test_a_response_without_room_is_not_kept_and_not_stopped():
    memory = ResponseMemory(asyncio.get_running_loop().time, max_bytes=OVERHEAD)
    client, server, asking, stopped = await adding(memory)
    assert await asking is None
    assert not client._stops
    server.close()
    assert not stopped.is_set()
    assert len(memory.entries) == 0


async def test_a_response_that_is_dropped_while_its_worker_learns_that_it_is_kept_stops():
    memory = ResponseMemory(lambda: 0.0)
    _, _, asking, stopped = await adding(memory)
    memory.do(Operation("delete", Name(None, "x")))
    assert stopped.is_set()
    assert (await asking).status == "queued"


@pytest.mark.parametrize(("kind", "items"), [("get", b"[1]"), ("body", b""), ("cancel", b""), ("delete", b"")])
def test_a_worker_gets_the_items_only_where_it_needs_them(kind, items):
    memory, name, mail = ResponseMemory(lambda: 0.0), Name(None, "x"), []
    kept = StoredResponse("completed", True, b"[1]", b"{}")
    memory.do(Operation("add", name, kept))
    ResponsesServer(memory, mail.append).receive(StoreRequest(1, Operation(kind, name)))
    assert mail == [StoreReply(1, StoredResponse("completed", True, items, b"{}"))]


def test_a_response_that_has_ended_has_nothing_to_stop():
    """Its task, which `stop` refers to, can go."""
    memory, name = ResponseMemory(lambda: 0.0), Name(None, "x")
    task = Task()
    memory.do(Operation("add", name, response_of("queued")), task.cancel)
    alive = weakref.ref(task)
    del task
    memory.do(Operation("replace", name, response_of("in_progress")))
    assert alive() is not None
    memory.do(Operation("replace", name, response_of("completed")))
    assert alive() is None


class Task:
    def cancel(self):
        pass


# The bounds

EVENT = b"event: a\ndata: {}\n\n"


class Bounds(RuleBasedStateMachine):
    """In any order of operations the store keeps its bounds, and each tenant has only its own responses."""

    MOST, BYTES = 6, 6 * OVERHEAD
    names = st.builds(Name, st.sampled_from([None, "a", "b"]), st.sampled_from("12345"))

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.memory = ResponseMemory(lambda: self.now, self.MOST, self.BYTES)
        self.kept: dict[Name, tuple[StoredResponse, float]] = {}
        # The responses that run, and those that were stopped.
        self.running: set[Name] = set()
        self.stopped: list[Name] = []

    @rule(name=names, size=st.integers(0, 3 * OVERHEAD) | st.just(BYTES), background=st.booleans(), followed=st.booleans())
    def add(self, name, size, background, followed):
        if name in self.kept:
            return
        response = response_of("queued" if background else "completed", size, background)
        events = EVENT if background and followed else b""
        found = self.memory.do(Operation("add", name, response, events), lambda: self.stopped.append(name))
        if found is None:
            assert self.memory.do(Operation("get", name)) is None
        else:
            assert self.memory.do(Operation("get", name)) is response
            self.kept[name] = response, self.now
            if background:
                self.running.add(name)
        if response.size > self.BYTES:
            assert found is None
            assert not self.stopped
        self._note_dropped(spared=name.tenant)

    @rule(name=names, size=st.integers(0, 3 * OVERHEAD) | st.just(BYTES), status=st.sampled_from(["in_progress", "completed"]))
    def replace(self, name, size, status):
        response = response_of(status, size, background=True)
        if name in self.running:
            self.kept[name] = response, self.kept[name][1]
            if status == "completed":
                self.running.remove(name)
        self.memory.do(Operation("replace", name, response))
        self._note_dropped()

    @rule(name=names, count=st.integers(1, 30))
    def append(self, name, count):
        self.memory.do(Operation("append", name, events=EVENT * count))
        self._note_dropped()

    @rule(name=names)
    def cancel(self, name):
        found = self.memory.do(Operation("cancel", name))
        if found is not None:
            assert not found.runs
            assert found.status == ("cancelled" if name in self.running else self.kept[name][0].status)
            self.kept[name] = found, self.kept[name][1]
            self._check_stopped([name] if name in self.running else [])
        self._note_dropped()

    @rule(name=names)
    def delete(self, name):
        found = self.memory.do(Operation("delete", name))
        if found is not None:
            assert found == self.kept.pop(name)[0]
            self._check_stopped([name] if name in self.running else [])
        self._note_dropped()
        assert self.memory.do(Operation("get", name)) is None

    @rule(name=names)
    def get(self, name):
        found = self.memory.do(Operation("get", name))
        assert found is None or found == self.kept[name][0]
        self._note_dropped()

    @precondition(lambda self: self.kept)
    @rule(seconds=st.floats(0, KEEP_SECONDS))
    def wait(self, seconds):
        self.now += seconds
        self._note_dropped()

    def _size(self, name):
        entry = self.memory.entries.get(*name)
        assert (entry.response, entry.events is None or self.memory.do(Operation("events", name)).body != b"") == (self.kept[name][0], True)
        return entry.size

    def _check_stopped(self, names):
        for name in names:
            self.stopped.remove(name)
            self.running.remove(name)

    def _note_dropped(self, spared=()):
        """Forget what the store has dropped; exactly the responses of these that ran were stopped.

        None of the tenant `spared` is among them.
        """
        gone = {name for name in self.kept if self.memory.do(Operation("get", name)) is None}
        assert not any(name.tenant == spared for name in gone & self.running)
        assert sorted(map(str, self.stopped)) == sorted(map(str, gone & self.running))
        for name in gone:
            del self.kept[name]
        self.running -= gone
        self.stopped.clear()

    @invariant()
    def the_bounds_hold(self):
        assert self.memory.entries.bytes == sum(self._size(name) for name in self.kept) <= self.BYTES
        assert len(self.memory.entries) == len(self.kept) <= self.MOST
        assert all(self.now - since < KEEP_SECONDS for _, since in self.kept.values())


TestBounds = Bounds.TestCase
