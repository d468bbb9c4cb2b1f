"""The ingress with replicas that refuse, die or are unreachable."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web
from yarl import URL

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.cluster.autoscaling import desired_ingresses
from frontends.cluster.ingress import SILENT_SECONDS, Relay
from frontends.cluster.ingress_server import IngressServer, open_listeners
from frontends.cluster.intake import Intake
from frontends.cluster.relay import SECRET, RelayedRequest, ResponseHead
from frontends.cluster.replica_client import TAKE_SECONDS, Answer, Lost, NotAccepted, ReplicaClient
from frontends.cluster.replica_directory import ReplicaAddress, ReplicaDirectory, ReplicaReport
from frontends.cluster.replica_load import NEW
from frontends.cluster.settings import ClusterSettings, read_settings
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from llmserve import ConfigurationError, EngineRestarted, Unavailable
from llmserve.admission import Refusal

ASKED = RelayedRequest("POST", "/v1/completions", (), b"{}")
VIRTUAL = pytest.param(("asyncio", {"loop_factory": VirtualLoop}), id="virtual")


@pytest.fixture
def anyio_backend():
    return "asyncio"


# The choice of a replica, in virtual time

virtual = pytest.mark.parametrize("anyio_backend", [VIRTUAL])


def answer(status=200, milliseconds=None, body=b""):
    headers = () if milliseconds is None else (("Retry-After-Ms", str(milliseconds)),)
    return status, headers, body


class Scripted:
    """A client whose first request gets the first answer, and so on. An answer may be an exception."""

    def __init__(self, *script):
        self.script = list(script)
        self.asked = []
        self.answers = ()

    async def ask(self, place, asked):
        assert asked is ASKED
        self.asked.append(place.replica)
        step = self.script.pop(0)
        if step is NotAccepted:
            await asyncio.sleep(TAKE_SECONDS)
        if isinstance(step, type):
            raise step
        status, headers, body = step
        return Answer(place.replica, "/a", ResponseHead(status, headers), body)


async def ask(*script, replicas="ab"):
    client: Any = Scripted(*script)
    directory = ReplicaDirectory(asyncio.get_running_loop().time)
    # The first one is the best.
    reports = {
        name: ReplicaReport(ReplicaAddress(name, "10.0.0.1", 8000, "secret"), attrs.evolve(NEW, number=1, running=number), 0.0)
        for number, name in enumerate(replicas)
    }
    directory.learn(reports)
    try:
        return await Relay(client, directory).ask(ASKED), client.asked
    finally:
        assert not client.script


@virtual
async def test_a_replica_that_dies_before_its_answer_is_complete_is_replaced():
    found, asked = await ask(Lost, answer(body=b"yes"))
    assert (found.body, asked) == (b"yes", ["a", "b"])


@virtual
async def test_a_request_that_kills_every_replica_is_given_up():
    with pytest.raises(EngineRestarted, match="3 replicas"):
        await ask(Lost, Lost, Lost, replicas="abcd")


@virtual
async def test_another_replica_may_take_a_refused_request():
    found, asked = await ask(answer(503, 900), answer(body=b"yes"))
    assert (found.body, asked) == (b"yes", ["a", "b"])


@virtual
@pytest.mark.parametrize(("first", "second", "body"), [(900, 300, b"second"), (300, 900, b"first")])
async def test_of_two_refusals_the_one_with_the_shorter_retry_after_counts(first, second, body):
    found, asked = await ask(answer(503, first, b"first"), answer(503, second, b"second"), replicas="abc")
    assert (found.body, len(asked)) == (body, 2)


@virtual
async def test_without_another_replica_the_refusal_is_returned():
    found, asked = await ask(answer(503, 900, b"no"), replicas="a")
    assert (found.body, asked) == (b"no", ["a"])


@virtual
async def test_a_client_error_is_not_tried_elsewhere():
    found, asked = await ask(answer(429, 900))
    assert (found.head.status, asked) == (429, ["a"])


@virtual
async def test_a_replica_that_does_not_accept_the_request_is_replaced_and_then_chosen_last():
    """A regression: with one unreachable host the error said that no replica takes requests."""
    found, asked = await ask(NotAccepted, NotAccepted, answer(body=b"yes"), replicas="abc")
    assert (found.body, len(asked)) == (b"yes", 3)


@virtual
async def test_a_single_replica_that_was_slow_is_tried_again():
    found, asked = await ask(NotAccepted, Lost, answer(body=b"yes"), replicas="a")
    assert (found.body, asked) == (b"yes", ["a"] * 3)


@virtual
async def test_if_no_replica_accepts_it_the_client_gets_retry_after():
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(Unavailable, match="no replica") as raised:
        await ask(*[NotAccepted] * 4, replicas="a")
    assert (loop.time() - began, raised.value.retry_after) == (pytest.approx(10.0, abs=0.5), 10.0)
    with pytest.raises(Unavailable, match="no replica"):
        await ask(replicas="")


@virtual
async def test_a_refusal_is_returned_if_no_other_replica_accepts_the_request():
    found, _ = await ask(answer(503, 900, b"no"), NotAccepted, NotAccepted, replicas="abc")
    assert found.body == b"no"


# An answer, from a replica's HTTP server

ACCEPTED = b"HTTP/1.1 100 Continue\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
ONE, TWO = b"9\r\ndata: 1\n\n\r\n", b"9\r\ndata: 2\n\n\r\n"
SILENCE = b""


@contextlib.asynccontextmanager
async def replica(*script):
    """Yield the address of a server that sends these bytes, and then closes the connection unless the last is SILENCE."""
    over = asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for part in script:
            writer.write(part)
            await writer.drain()
            if part is ACCEPTED:
                # A connection that is closed with unread bytes is reset, and loses what was sent.
                await reader.readexactly(len(ASKED.body))
            elif part is SILENCE:
                await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield ReplicaAddress("a", "127.0.0.1", server.sockets[0].getsockname()[1], "the secret")
        finally:
            over.set()


@pytest.fixture
async def client():
    one = ReplicaClient()
    yield one
    assert not one.answers
    await one.close()


async def test_a_whole_answer_is_returned_when_it_is_whole(client):
    async with replica(ACCEPTED, WHOLE, b"y", b"es") as place:
        found = await client.ask(place, ASKED)
    assert (found.head.status, found.body, found.replica) == (200, b"yes", "a")


@pytest.mark.parametrize(
    "script",
    [[ACCEPTED], [ACCEPTED, WHOLE, b"y"], [ACCEPTED, EVENTS], [ACCEPTED, EVENTS, ONE[:5]], [ACCEPTED, b"nonsense\r\n\r\n"]],
    ids=["no head", "part of a body", "no event", "part of an event", "no HTTP"],
)
async def test_a_replica_that_dies_before_a_part_of_the_answer_can_be_sent_is_lost(client, script):
    async with replica(*script) as place:
        with pytest.raises(Lost):
            await client.ask(place, ASKED)


async def test_a_stream_whose_replica_dies_ends_with_an_error_event(client):
    async with replica(ACCEPTED, EVENTS, ONE) as place:
        found = await client.ask(place, ASKED)
        first, last = [chunk async for chunk in found.events()]
    assert first == b"data: 1\n\n"
    assert b'"code":"engine_restarted"' in last
    assert last.endswith(b"\n\ndata: [DONE]\n\n")


async def test_the_error_event_has_the_format_of_the_route(client):
    async with replica(ACCEPTED, EVENTS, ONE) as place:
        found = await client.ask(place, RelayedRequest("POST", "/v1/messages?beta=true", (), b"{}"))
        _, last = [chunk async for chunk in found.events()]
    assert last.startswith(b'event: error\ndata: {"error":{"type":"overloaded_error"')


async def test_a_complete_stream_has_no_error_event_and_no_event_is_cut_in_two(client):
    async with replica(ACCEPTED, EVENTS, ONE, b"c\r\ndata: 2\n\ndat\r\n", b"6\r\na: 3\n\n\r\n0\r\n\r\n") as place:
        found = await client.ask(place, ASKED)
        chunks = [chunk async for chunk in found.events()]
    assert b"".join(chunks) == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)


async def test_a_replica_that_cannot_be_reached_has_not_accepted_the_request(client, monkeypatch):
    async with replica() as place:
        pass
    with pytest.raises(NotAccepted):
        await client.ask(place, ASKED)
    monkeypatch.setattr("frontends.cluster.replica_client.TAKE_SECONDS", 0.05)
    async with replica(SILENCE) as place:
        with pytest.raises(NotAccepted):
            await client.ask(place, ASKED)


@pytest.mark.parametrize("script", [[ACCEPTED, SILENCE], [ACCEPTED, WHOLE, SILENCE], [ACCEPTED, EVENTS, SILENCE]])
async def test_an_accepted_request_waits_until_its_replica_is_lost(client, script, monkeypatch):
    """A regression: requests of an unreachable host ended after a minute."""
    monkeypatch.setattr("frontends.cluster.replica_client.TAKE_SECONDS", 0.05)
    loop = asyncio.get_running_loop()
    relay = Relay(client, ReplicaDirectory(loop.time))
    async with replica(*script) as place:
        asked = asyncio.create_task(client.ask(place, ASKED))
        await asyncio.sleep(0.2)
        silent = {"a": ReplicaReport(place, NEW, SILENT_SECONDS + 1)}
        # A byte has just come, so the reports may be late.
        relay.learn(silent)
        await asyncio.sleep(0.05)
        assert not asked.done()
        for found in client.answers:
            found._heard -= SILENT_SECONDS
        relay.learn({"a": ReplicaReport(place, NEW, SILENT_SECONDS - 1)})
        await asyncio.sleep(0.05)
        assert not asked.done()
        relay.learn(silent)
        with pytest.raises(Lost):
            await asked


async def test_a_replica_at_the_address_of_another_has_not_accepted_the_request(client):
    async with replica(b"HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\n\r\n") as place:
        with pytest.raises(NotAccepted):
            await client.ask(place, ASKED)


async def test_a_probe_does_not_wait_for_a_frozen_replica(client, monkeypatch):
    monkeypatch.setattr("frontends.cluster.replica_client.TAKE_SECONDS", 0.05)
    async with replica(SILENCE) as place:
        with pytest.raises(NotAccepted):
            await client.ask(place, RelayedRequest("GET", "/health/ready", (), b""))
        gathering = asyncio.create_task(client.ask(place, RelayedRequest("GET", "/metrics", (), b"")))
        await asyncio.sleep(0.2)
        assert not gathering.done()
        gathering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gathering


async def test_a_stream_of_a_silent_replica_ends_with_an_error_event(client):
    async with replica(ACCEPTED, EVENTS, ONE, SILENCE) as place:
        found = await client.ask(place, ASKED)
        events = found.events()
        assert await anext(events) == b"data: 1\n\n"
        reading = asyncio.create_task(anext(events))
        await asyncio.sleep(0.05)
        found.lose(asyncio.get_running_loop().time() + 1)
        assert b"engine_restarted" in await reading
        await events.aclose()


async def test_a_request_arrives_as_it_was_sent(client):
    seen = []

    async def echo(request):
        seen.append((request.method, request.raw_path, request.headers.get("X-One"), request.headers[SECRET], await request.read()))
        return web.Response(body=b"yes", headers={"X-Two": "2"})

    app = web.Application()
    app.router.add_post("/a", echo)
    async with running(app) as acceptor, listen(acceptor, listener := bind("127.0.0.1", 0)):
        place = ReplicaAddress("a", "127.0.0.1", listener.getsockname()[1], "the secret")
        found = await client.ask(place, RelayedRequest("POST", "/a?b=%2F", (("X-One", "1"), ("Host", "somewhere")), b"body"))
    assert seen == [("POST", "/a?b=%2F", "1", "the secret", b"body")]
    assert (found.head.status, found.head.get("x-two"), found.body) == (200, "2", b"yes")
    assert found.head.get("Content-Length") == found.head.get("Connection") == ""


# The ingress's own port

# A client that does not decode the target.
TARGET = URL("/a?b=%2F", encoded=True)
JSON = {"Content-Type": "application/json"}


@contextlib.asynccontextmanager
async def serving(ask):
    settings = read_settings(["--port", "0"])
    [listener] = await open_listeners(settings.cluster, 0.0)
    server = IngressServer(settings, Intake(), ask)
    async with server.serving([listener]), aiohttp.ClientSession(f"http://127.0.0.1:{listener.getsockname()[1]}") as session:
        yield server, session


async def test_a_client_cannot_show_a_secret_and_gets_every_header_once():
    asked = []

    async def ask(one):
        asked.append(one)
        return Answer("a", "/a", ResponseHead(200, (("X-Two", "2"), ("X-Two", "3"), ("Content-Type", "text/plain"))), b"yes")

    async with (
        serving(ask) as (_, session),
        session.post(TARGET, data=b"body", headers={SECRET: "a guess", "X-One": "1", **JSON}) as response,
    ):
        assert (response.status, await response.read(), response.headers.getall("X-Two")) == (200, b"yes", ["2", "3"])
        assert response.headers.getall("Content-Type") == ["text/plain"]
    assert (asked[0].method, asked[0].path, asked[0].body, asked[0].get("X-One"), asked[0].get(SECRET)) == (
        "POST",
        "/a?b=%2F",
        b"body",
        "1",
        "",
    )


async def test_a_client_that_leaves_ends_its_answer(client):
    async with replica(ACCEPTED, EVENTS, ONE, SILENCE) as place:

        async def ask(asked):
            return await client.ask(place, asked)

        async with serving(ask) as (_, session):
            response = await session.post("/v1/completions", data=b"{}", headers=JSON)
            assert await response.content.readline() == b"data: 1\n"
            response.close()
            async with asyncio.timeout(10):
                while client.answers:
                    await asyncio.sleep(0.01)


async def test_a_failure_has_openai_s_form():
    async def ask(_):
        raise Unavailable("no replica accepts requests", retry_after=10.0, reason=Refusal.STARTING)

    async with serving(ask) as (_, session), session.get("/v1/models") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "10")
        assert (await response.json())["error"]["message"] == "no replica accepts requests"


async def test_an_ingress_that_is_about_to_end_refuses_new_requests_and_waits_for_the_open_ones():
    go_on = asyncio.Event()

    async def ask(_):
        await go_on.wait()
        return Answer("a", "/a", ResponseHead(200, ()), b"yes")

    async with serving(ask) as (server, session):
        first = asyncio.create_task(session.get("/"))
        while not server._open:
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(server.drain(60.0))
        await asyncio.sleep(0)
        async with session.get("/health/ready") as response:
            assert (response.status, response.headers["Connection"], response.headers["Retry-After"]) == (503, "close", "5")
        assert not draining.done()
        go_on.set()
        async with await first as response:
            assert (response.status, await response.read()) == (200, b"yes")
        await draining
        await server.drain(60.0)


async def test_the_port_of_another_program_is_refused():
    with bind("127.0.0.1", 0) as taken:
        with pytest.raises(ConfigurationError, match=r"--port: .*127\.0\.0\.1"):
            await open_listeners(ClusterSettings(port=taken.getsockname()[1]), 0.0)
        waiting = asyncio.create_task(open_listeners(ClusterSettings(port=taken.getsockname()[1]), 30.0))
        await asyncio.sleep(0.05)
    # The ingress that had it has drained.
    for listener in await waiting:
        listener.close()
    # The ingresses of one host share it.
    [first] = await open_listeners(ClusterSettings(port=0, ingresses=2), 0.0)
    [second] = await open_listeners(ClusterSettings(port=first.getsockname()[1], ingresses=2), 0.0)
    first.close()
    second.close()


@pytest.mark.parametrize(("alive", "ingresses"), [([True], 2), ([True, True, True], 6), ([True, False, True], 4)])
async def test_there_are_as_many_ingresses_on_each_host(monkeypatch, alive, ingresses):
    # Patched, because real hosts would take a minute per test; test_hosts.py has real hosts.
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": one} for one in alive])
    assert desired_ingresses(SimpleNamespace(capacity_adjusted_min_replicas=2)) == (ingresses, {})
