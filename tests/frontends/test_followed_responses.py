"""Responses in the background whose events clients follow, leave and continue.

`tests/contracts/responses_contract.py` has the official client.
"""

import asyncio
import json
import signal
from itertools import pairwise

import aiohttp
import anyio
import msgspec
import pytest
from engines import ScriptedEngine
from http_support import running_server
from hypothesis import example, given
from hypothesis import strategies as st
from program_support import fetch, program, until, workers_of

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.access.api_keys import Key, Keys, digest
from frontends.access.control import Access
from frontends.answers import background
from frontends.http.departure import Departure
from frontends.http.event_stream import EventStream
from frontends.openai.sse import END
from frontends.responses.events import PIECE, Events, Place
from frontends.responses.memory import ResponseMemory
from frontends.responses.stored import Name, Operation, StoredResponse
from frontends.workers.messages import StoreReply
from frontends.workers.responses import LOST, ResponsesClient, ResponsesServer
from llmserve import AdmissionConfig, Delta, EngineError, ManagerConfig

PATH = "/v1/responses"
HI = {"input": "hi", "max_output_tokens": 5, "temperature": 0}
STREAM = {**HI, "background": True, "stream": True}
ENDLESS = {**STREAM, "max_output_tokens": 1900, "ignore_eos": True}
PATIENCE = 60
BEGIN = ["response.created", "response.queued", "response.in_progress"]


def decoded(text):
    found = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")] == [one["type"] for one in found]
    return found


async def follow(session, name, after=None, **more):
    """Return the status and the events of a response, or the error."""
    params = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    with anyio.fail_after(PATIENCE):
        async with session.get(f"{PATH}/{name}", params=params, **more) as response:
            text = await response.text()
            return response.status, decoded(text) if response.status == 200 else json.loads(text)["error"]


async def begin(session, body=ENDLESS, **more):
    """Begin a response and leave its stream; return its id."""
    with anyio.fail_after(PATIENCE):
        async with session.post(PATH, json=body, **more) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: "):
                    break
            else:
                raise AssertionError("no event")
            return json.loads(line[6:])["response"]["id"]


async def retrieved(session, name):
    async with session.get(f"{PATH}/{name}") as response:
        return response.status, await response.json()


@pytest.fixture
async def server():
    async with running_server() as server:
        yield server


async def test_a_stream_in_the_background_is_the_one_that_is_kept(server):
    async with server.session.post(PATH, json=STREAM) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        sent = decoded(await response.text())
    name = sent[0]["response"]["id"]
    assert [one["type"] for one in sent[:3]] == BEGIN
    assert [one["response"]["status"] for one in sent[:3]] == ["queued", "queued", "in_progress"]
    assert [one["sequence_number"] for one in sent] == list(range(len(sent)))
    assert sent[-1]["type"] == "response.incomplete"
    assert await retrieved(server.session, name) == (200, sent[-1]["response"])
    for after in (None, 0, len(sent) - 2, len(sent) - 1, 10**9 - 1):
        assert await follow(server.session, name, after) == (200, sent[0 if after is None else after + 1 :])
    _, plain, _ = await server.post(PATH, HI)
    assert plain["output"][0]["content"] == sent[-1]["response"]["output"][0]["content"]


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "", "9" * 10])
async def test_a_wrong_place_is_a_400(server, after):
    name = await begin(server.session, STREAM)
    status, error = await follow(server.session, name, after)
    assert (status, error["param"]) == (400, "starting_after")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("stream=True", "stream"),
        ("stream=1", "stream"),
        ("stream=", "stream"),
        ("stream=true&stream=true", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=false&starting_after=1", "starting_after"),
        ("stream=true&starting_after=1&starting_after=1", "starting_after"),
    ],
)
async def test_a_wrong_query_is_a_400(server, query, field):
    name = await begin(server.session, STREAM)
    async with server.session.get(f"{PATH}/{name}?{query}") as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, field)
    async with server.session.get(f"{PATH}/{name}?stream=false") as response:
        assert (await response.json())["id"] == name


async def test_only_a_stream_can_be_followed(server):
    _, queued, _ = await server.post(PATH, {**HI, "background": True})
    for name, found in ((queued["id"], (400, "stream")), ("resp-x", (404, "response_id"))):
        status, error = await follow(server.session, name)
        assert (status, error["param"]) == found


async def test_a_response_belongs_to_its_tenant():
    access = Access(Keys(Key(name, digest(name), name) for name in "ab"))
    async with running_server(app={"access": access}) as server:
        name = await begin(server.session, STREAM, headers={"Authorization": "Bearer a"})
        assert (await follow(server.session, name, headers={"Authorization": "Bearer b"}))[0] == 404
        assert (await follow(server.session, name, headers={"Authorization": "Bearer a"}))[0] == 200


async def test_a_client_that_leaves_ends_nothing_and_others_follow():
    engine = ScriptedEngine()
    async with running_server(engine) as server:
        name = await begin(server.session)
        with anyio.fail_after(PATIENCE):
            await engine.asked()
        followers = [asyncio.create_task(follow(server.session, name, after)) for after in (None, 2)]
        (request_id,) = engine.sinks
        engine.sinks[request_id].put(Delta("so", (1,)))
        await anyio.sleep(2 * background.EVENT_SECONDS)
        engine.finish(request_id, "a")
        (_, first), (_, second) = [await one for one in followers]
    assert [one["type"] for one in first[:3]] == BEGIN
    assert second == first[3:]
    assert "".join(one["delta"] for one in second if one["type"].endswith("text.delta")) == "soa"
    assert second[-1]["type"] == "response.completed"


async def test_an_error_of_the_engine_is_the_last_event():
    engine = ScriptedEngine()
    async with running_server(engine) as server:
        name = await begin(server.session)
        with anyio.fail_after(PATIENCE):
            await engine.asked()
        (sink,) = engine.sinks.values()
        sink.put(Delta("a", (1,)))
        sink.fail(EngineError("bad luck"))
        _, found = await follow(server.session, name)
        assert await retrieved(server.session, name) == (200, found[-1]["response"])
    assert (found[-1]["type"], found[-1]["response"]["status"]) == ("response.failed", "failed")
    assert found[-1]["response"]["error"] == {"code": "engine_error", "message": "bad luck"}
    assert [one["sequence_number"] for one in found] == list(range(len(found)))


async def test_a_cancelled_response_has_a_last_event_and_a_deleted_one_an_error():
    async with running_server(time_scale=1.0) as server:
        names = [await begin(server.session) for _ in range(2)]
        followers = [asyncio.create_task(follow(server.session, name)) for name in names]
        async with server.session.post(f"{PATH}/{names[0]}/cancel") as response:
            cancelled = await response.json()
        async with server.session.delete(f"{PATH}/{names[1]}") as response:
            assert response.status == 200
        (_, first), (status, second) = [await one for one in followers]
        assert (first[-1]["type"], first[-1]["response"]) == ("response.failed", cancelled)
        assert cancelled["status"] == "cancelled"
        assert await follow(server.session, names[0], len(first) - 2) == (200, first[-1:])
        assert status == 404 or (second[-1]["type"], second[-1]["code"]) == ("error", "not_found")
        for found in (first, *([second] if status == 200 else [])):
            assert [one["sequence_number"] for one in found] == list(range(len(found)))
        with anyio.fail_after(PATIENCE):
            while server.manager.statistics().open:
                await anyio.sleep(0.01)


async def test_a_refusal_is_a_status_and_keeps_nothing(monkeypatch):
    monkeypatch.setattr(background, "REFUSAL_SECONDS", PATIENCE)
    memory = ResponseMemory(asyncio.get_running_loop().time)
    config = ManagerConfig(drain_timeout=1, admission=AdmissionConfig(max_running=1, max_waiting=0))
    async with running_server(ScriptedEngine(), config, app={"responses": memory}) as server:
        await begin(server.session)
        status, error, headers = await server.post(PATH, STREAM)
        assert (status, error["error"]["code"], int(headers["Retry-After"]) > 0) == (503, "overloaded", True)
        assert len(memory.entries) == 1


async def test_a_response_that_outgrows_the_store_ends():
    """Its events count for the store's bytes."""
    memory = ResponseMemory(asyncio.get_running_loop().time, max_bytes=12_000)
    async with running_server(app={"responses": memory}, time_scale=1.0) as server:
        name = await begin(server.session)
        status, found = await follow(server.session, name)
        assert (status, found[-1]["type"], found[-1]["sequence_number"]) == (200, "error", len(found) - 1)
        assert sum(len(json.dumps(one)) for one in found) > 8000
        assert (len(memory.entries), memory.entries.bytes) == (0, 0)
        with anyio.fail_after(PATIENCE):
            while server.manager.statistics().open:
                await anyio.sleep(0.01)


@given(st.lists(st.lists(st.integers(0, 2 * PIECE), max_size=6), max_size=6), st.integers(0, 40))
@example([[PIECE - len(b"data: ") + size for size in range(-2, 3)]], 0)
def test_events_are_read_in_pieces_from_any_number(additions, number):
    events, expected = Events(), []
    for addition in additions:
        new = [b"data: %b\n\n" % (b"x" * size) for size in addition]
        events.add(b"".join(new))
        expected += new
    found, place = b"", Place(number)
    while piece := events.read(place):
        assert len(piece) <= PIECE
        assert piece.endswith(END) or END not in piece
        found += piece
        place = place.after(piece)
    assert found == b"".join(expected[number:])
    assert place == Place(max(number, len(expected)))
    assert events.size == sum(map(len, expected)) + 8 * len(expected)


KEY = {"Idempotency-Key": "one"}


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_a_stream_that_failed_runs_again_with_the_same_key(end):
    """A regression: its last event was recorded as that of a complete answer."""
    async with running_server(time_scale=1.0) as server:
        names = []
        for _ in range(2):
            async with server.session.post(PATH, json=ENDLESS, headers=KEY) as response:
                assert "Idempotent-Replayed" not in response.headers
                line = await anext(line async for line in response.content if line.startswith(b"data: "))
                names.append(json.loads(line[6:])["response"]["id"])
                path = f"{PATH}/{names[-1]}"
                async with server.session.post(f"{path}/cancel") if end == "cancel" else server.session.delete(path) as ended:
                    assert ended.status == 200
                await response.read()
        assert len(set(names)) == 2


async def test_only_a_complete_stream_of_a_post_is_recorded(server, monkeypatch):
    """A regression: each follower that sent a key had the server record its stream, for nothing."""
    recording = []
    real = EventStream.record

    def record(self, max_bytes):
        recording.append(self)
        real(self, max_bytes)

    monkeypatch.setattr(EventStream, "record", record)
    answers = []
    for replayed in (None, "true"):
        async with server.session.post(PATH, json=STREAM, headers=KEY) as response:
            assert response.headers.get("Idempotent-Replayed") == replayed
            answers.append(await response.text())
    assert answers[0] == answers[1]
    assert await follow(server.session, decoded(answers[0])[0]["response"]["id"], headers=KEY) == (200, decoded(answers[0]))
    assert len(recording) == 1


def shared(memory):
    """Return a worker's store over the supervisor's `memory`, and the supervisor's messages."""
    sent: list[StoreReply] = []

    def reply(message):
        sent.append(message)
        client.receive(message)

    server = ResponsesServer(memory, reply)
    client = ResponsesClient(server.receive, keeps=True)
    return client, sent


LARGE = b"data: %b\n\n" % (b"x" * 5 * PIECE)
NAME = Name(None, "resp-a")


async def keep(memory, events, status="completed", body=b"{}"):
    await memory.ask(Operation("add", NAME, StoredResponse("queued", background=True, items=b"", body=b"{}"), events))
    await memory.ask(Operation("replace", NAME, StoredResponse(status, background=True, items=b"", body=body)))


class Watched(ResponseMemory):
    """Notes what it returns of events, and when."""

    def __init__(self):
        super().__init__(lambda: 0.0)
        self.reads = []

    async def ask(self, operation, stop=None):
        found = await super().ask(operation, stop)
        if operation.kind == "events":
            self.reads.append((found.body, anyio.current_time()))
        return found


@pytest.mark.parametrize("query", ["stream=true", "stream=true&starting_after=0"])
async def test_a_follower_reads_each_piece_once(query):
    """A regression: the route read the first piece too, and discarded it."""
    memory = Watched()
    await keep(memory, LARGE)
    async with running_server(app={"responses": memory}) as server, server.session.get(f"{PATH}/{NAME.id}?{query}") as response:
        assert await response.read() == b"".join(piece for piece, _ in memory.reads)


@pytest.mark.parametrize("workers", [False, True])
async def test_a_follower_gets_a_large_event_in_pieces(workers):
    """A regression: it held the whole event, so 150 clients that did not read one of 2.4 MB held 650 MB."""
    memory = ResponseMemory(lambda: 0.0)
    store, sent = shared(memory)
    await keep(memory, LARGE + b"data: b\n\n")
    found = [piece async for piece, _ in background.follow(store if workers else memory, NAME)]
    assert b"".join(found).startswith(LARGE + b"data: b\n\nevent: response.completed\n")
    assert max(map(len, found)) == PIECE
    assert all(len(msgspec.msgpack.encode(message)) < PIECE + 100 for message in sent)


async def test_a_response_that_is_deleted_in_the_middle_of_an_event_has_no_further_one():
    """A client would take it for the rest of the event."""
    memory = ResponseMemory(lambda: 0.0)
    await keep(memory, LARGE)
    following = background.follow(memory, NAME)
    assert await anext(following) == (LARGE[:PIECE], True)
    await memory.ask(Operation("delete", NAME))
    assert [one async for one in following] == [(b"", False)]


@pytest.mark.parametrize("events", [b"data: a\n\n", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("size", [2, 3 * PIECE])
@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
async def test_a_client_that_has_the_last_event_gets_no_error_behind_it(events, size, status):
    """A regression: the response was deleted or dropped while a slow client took its last piece."""
    memory = ResponseMemory(lambda: 0.0)
    await keep(memory, events, status, b'"%b"' % (b"x" * size))
    expected = b"".join([piece async for piece, _ in background.follow(memory, NAME)])
    assert f'"sequence_number":1,"response":"{"x" * size}"'.encode() in expected
    found = b""
    async for piece, complete in background.follow(memory, NAME):
        found += piece
        assert complete == (status in ("completed", "incomplete"))
        if len(found) == len(expected):
            await memory.ask(Operation("delete", NAME))
    assert found == expected


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})])
async def test_a_follower_looks_rarely_during_a_silence_and_often_after_news(anyio_backend):
    """A regression: 1,000 followers of a silent response cost the supervisor a fifth of a core."""
    memory = Watched()
    await keep(memory, b"data: a\n\n", "in_progress")
    following = background.follow(memory, NAME)
    for _ in range(2):
        assert (await anext(following))[0].startswith(b"data:")
        memory.reads.clear()
        asking = asyncio.ensure_future(anext(following))
        await anyio.sleep(60)
        pauses = [after - before for (_, before), (_, after) in pairwise(memory.reads)]
        assert pauses[0] == pytest.approx(background.EVENT_SECONDS)
        assert max(pauses) == pytest.approx(background.MAX_LOOK_SECONDS)
        assert len(pauses) < 60 / background.MAX_LOOK_SECONDS + 5
        await memory.ask(Operation("append", NAME, events=b"data: b\n\n"))
        with anyio.fail_after(background.MAX_LOOK_SECONDS):
            assert await asking == (b"data: b\n\n", False)
        await memory.ask(Operation("append", NAME, events=b"data: c\n\n"))


async def test_a_follower_of_a_response_that_runs_leaves_with_an_error_when_its_server_has_to_end():
    memory = ResponseMemory(lambda: 0.0)
    await keep(memory, LARGE + b"data: b\n\n", "in_progress")
    leaves = False
    following = background.follow(memory, NAME, leaves=lambda: leaves)
    found, _ = await anext(following)
    leaves = True
    # The event that it has begun is complete.
    found += b"".join([piece async for piece, _ in following])
    assert found.startswith(LARGE)
    (error,) = decoded(found.removeprefix(LARGE).removeprefix(b"data: b\n\n").decode())
    assert (error["type"], error["code"]) == ("error", "unavailable")
    # A client that continues after the last number that it has seen misses nothing.
    assert error["sequence_number"] == 1
    await memory.ask(Operation("cancel", NAME))
    ((found, complete),) = [one async for one in background.follow(memory, NAME, 1, leaves=lambda: True)]
    assert (b"event: response.failed" in found, complete) == (True, False)


async def test_a_follower_who_comes_too_late_gets_the_first_events_before_the_error():
    """A regression: the error had the number of the first event, which a client that continued after it missed."""
    memory = ResponseMemory(lambda: 0.0)
    await keep(memory, b"data: a\n\ndata: b\n\n", "in_progress")
    begun, error = [piece async for piece, _ in background.follow(memory, NAME, leaves=lambda: True)]
    assert begun == b"data: a\n\ndata: b\n\n"
    assert (decoded(error.decode())[0]["code"], decoded(error.decode())[0]["sequence_number"]) == ("unavailable", 1)


@pytest.mark.parametrize("end", ["leave", "dismiss"])
async def test_a_departure_waits_for_followers_until_they_are_dismissed(end):
    departure = Departure()
    with anyio.fail_after(PATIENCE):
        await departure.followed()
    waiting = asyncio.create_task(departure.followed())
    with departure.follower():
        with departure.follower():
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        if end == "dismiss":
            departure.dismiss()
            await waiting
    await waiting


async def test_a_response_that_is_complete_is_kept_although_its_server_ends(monkeypatch):
    """A regression: clients that followed it at another worker got the failure of a lost process."""
    engine, memory = ScriptedEngine(), ResponseMemory(asyncio.get_running_loop().time)
    async with running_server(engine, app={"responses": memory}) as server:
        name = Name(None, await begin(server.session))
        monkeypatch.setattr(background, "EVENT_SECONDS", 0.2)
        with anyio.fail_after(PATIENCE):
            await engine.asked()
            (request_id,) = engine.sinks
            engine.sinks[request_id].put(Delta("so", (1,)))
            while b'"delta":"so"' not in (await memory.ask(Operation("events", name))).body:
                await anyio.sleep(0.001)
        # The task that keeps the events pauses.
        engine.finish(request_id, "a")
    found = await memory.ask(Operation("body", name))
    assert (found.status, json.loads(found.body)["output"][0]["content"][0]["text"]) == ("completed", "soa")


async def test_a_drain_waits_for_the_followers_of_another_worker_s_response(tmp_path):
    """A regression: a worker without requests of its own ended, and cut them off."""
    options = ("--workers", "2", "--drain-timeout", str(PATIENCE), "--engine-arg", "step_seconds=0.1")
    async with program(tmp_path, *options) as (process, url, _):
        name = await begin_at(url, {**ENDLESS, "max_output_tokens": 60})
        found = await followed_until_the_end(process, url, name)
    assert [one[-1]["type"] for one in found] == ["response.incomplete"] * 4


async def test_any_worker_continues_a_stream_and_a_worker_s_end_is_its_last_event(tmp_path):
    options = ("--workers", "2", "--engine-arg", "step_seconds=0.02")
    async with program(tmp_path, *options) as (process, url, _):
        # On a new connection each, which the supervisor gives to either worker.
        name = await begin_at(url, {**STREAM, "max_output_tokens": 20, "ignore_eos": True})
        found = [await follow_at(url, name, after) for after in (None, None, None, 4)]
        assert found[0] == found[1] == found[2]
        assert found[3] == found[0][5:]
        assert found[0][-1]["type"] == "response.incomplete"
        running = await begin_at(url, ENDLESS)
        await until(url, lambda found: found["open"] == 1)
        for worker in workers_of(process):
            worker.kill()
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    status, body = await fetch(f"{url}{PATH}/{running}", method="GET")
                except OSError:
                    continue
                if status == 200 and json.loads(body)["status"] == "failed":
                    break
        last = (await follow_at(url, running))[-1]
        assert (last["type"], last["response"]["error"]) == ("response.failed", LOST)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_that_ends_ends_the_streams(tmp_path, workers):
    options = ("--workers", workers, "--drain-timeout", "0.5", "--engine-arg", "step_seconds=0.1")
    async with program(tmp_path, *options) as (process, url, lines):
        name = await begin_at(url, ENDLESS)
        found = await followed_until_the_end(process, url, name)
    assert {(one[0]["type"], one[-1]["type"]) for one in found} == {("response.created", "response.failed")}
    assert "Traceback" not in "".join(lines)


async def followed_until_the_end(process, url, name):
    """Return the events of four followers, on all workers, of a server that gets a SIGTERM."""
    async with aiohttp.ClientSession(url) as session:
        # The supervisor gives each connection to the worker with the fewest.
        following = [await session.get(f"{PATH}/{name}", params={"stream": "true"}) for _ in range(4)]
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE):
            found = [decoded(await one.text()) for one in following]
            assert await process.wait() == 0
    return found


async def begin_at(url, body):
    async with aiohttp.ClientSession(url) as session:
        return await begin(session, body)


async def follow_at(url, name, after=None):
    async with aiohttp.ClientSession(url) as session:
        status, found = await follow(session, name, after)
    assert status == 200
    return found
