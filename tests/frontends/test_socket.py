"""The raw-socket server with a misbehaving client, and with llmserve's client."""

import asyncio
import pathlib
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from engines import ScriptedEngine
from http_support import request
from socket_support import running_socket

from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.tls import TLS
from frontends.rawsocket import connection, frames
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.client import SocketClient
from frontends.rawsocket.frames import Cancel, Credit, Deltas, Detail, End, Error, FrameError, Hello, Open, Ping, Pong, Started
from frontends.rawsocket.server import open_server
from llmserve import (
    AdmissionConfig,
    CancellationToken,
    ConfigurationError,
    Delta,
    EngineDead,
    EngineError,
    EngineManager,
    ManagerConfig,
    Overloaded,
    RequestCancelled,
    Sampling,
)

DATA = pathlib.Path(__file__).parents[1] / "data"
ENDLESS = {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True}
# Fits the scripted engine's context.
SHORT = {"prompt": "hi", "max_tokens": 50}


def opening(number, credit=256, **fields):
    return Open(number, credit, frames.raw({"prompt": "hi", "max_tokens": 3, "ignore_eos": True, **fields}))


def pieces_of(messages, number):
    return [piece for message in messages if isinstance(message, Deltas) for piece in message.pieces if piece[0] == number]


async def scripted(engine):
    """Return the engine's only sink, when a request has reached the engine."""
    await engine.asked()
    (sink,) = engine.sinks.values()
    return sink


async def test_many_streams_share_a_connection_and_a_step_s_tokens_share_a_frame():
    async with running_socket() as served, served.raw() as raw:
        raw.send(*(opening(number) for number in range(1, 9)))
        messages, ended = [], 0
        while ended < 8:
            messages.append(await raw.read())
            ended += isinstance(messages[-1], End)
        for number in range(1, 9):
            assert sum(len(tokens) for _, _, tokens in pieces_of(messages, number)) == 3
        assert max(len(message.pieces) for message in messages if isinstance(message, Deltas)) > 1
        assert {message.usage.completion_tokens for message in messages if isinstance(message, End)} == {3}
        await served.quiet()


async def test_an_id_is_free_again_after_its_end():
    async with running_socket() as served, served.raw() as raw:
        for _ in range(3):
            raw.send(opening(5))
            assert isinstance((await raw.read_until(End))[0], Started)


async def test_without_credit_pieces_are_merged_and_wait():
    engine = ScriptedEngine()
    async with running_socket(engine=engine) as served, served.raw() as raw:
        raw.send(opening(1, credit=1))
        assert isinstance(await raw.read(), Started)
        sink = await scripted(engine)
        for number in range(4):
            sink.put(Delta(f"{number}", (number,)))
            await anyio.sleep(0.01)
        assert await raw.read() == Deltas([(1, "0", (0,))])
        raw.send(Credit(1, 1))
        assert await raw.read() == Deltas([(1, "123", (1, 2, 3))])
        engine.finish(engine.submitted[0], "end")
        await served.quiet()
        raw.send(Ping(1))
        # The slot is free, but the client's pieces wait for credit.
        assert await raw.read() == Pong(1)
        raw.send(Credit(1, 1))
        assert await raw.read() == Deltas([(1, "end", (1,))])
        assert isinstance(await raw.read(), End)


async def test_a_cancel_frees_the_engine_and_is_answered():
    async with running_socket(time_scale=0.5) as served, served.raw() as raw:
        raw.send(opening(1, **ENDLESS))
        await raw.read_until(Deltas)
        raw.send(Cancel(1, "enough"))
        error = (await raw.read_until(Error))[-1]
        assert (error.id, error.kind, error.details["reason"]) == (1, "RequestCancelled", "enough")
        await served.quiet()


async def test_another_connection_s_stream_cannot_be_cancelled():
    async with running_socket(time_scale=0.5) as served, served.raw() as mine, served.raw() as other:
        mine.send(opening(1, max_tokens=20))
        await mine.read_until(Started)
        other.send(Cancel(1), Credit(1, 5), Ping(3))
        assert await other.read() == Pong(3)
        end = (await mine.read_until(End))[-1]
        assert end.usage.completion_tokens == 20


@pytest.mark.parametrize("after", [0, 1])
async def test_a_lost_connection_frees_all_of_its_streams(after):
    async with running_socket(time_scale=0.5) as served:
        async with served.raw() as raw:
            raw.send(*(opening(number, **ENDLESS) for number in range(1, 20)))
            for _ in range(after):
                await raw.read_until(Deltas)
        await served.quiet()
        assert served.manager.metrics()["requests"]["completed"] == 0


async def test_the_error_for_a_bad_request_names_the_field_and_keeps_the_connection():
    async with running_socket() as served, served.raw() as raw:
        raw.send(opening(1, temperature=-1.0), opening(2, nonsense=1), opening(3, prompt=5), opening(4))
        found = {message.id: message for message in await raw.read_until(End) if isinstance(message, Error)}
        assert [(found[number].kind, found[number].details["param"]) for number in (1, 2, 3)] == [
            ("InvalidRequest", "temperature"),
            ("InvalidRequest", "nonsense"),
            ("InvalidRequest", "prompt"),
        ]


async def test_a_request_that_is_not_a_map_is_an_invalid_request():
    async with running_socket() as served, served.raw() as raw:
        raw.send(Open(1, 1, frames.raw([1, 2])))
        assert (await raw.read()).kind == "InvalidRequest"


@pytest.mark.parametrize("schema", [{"const": b"x"}, {"const": datetime.now(UTC)}, {"properties": {1: {}}}, '{"const": "\\ud800"}'])
async def test_a_schema_that_json_does_not_have_is_an_invalid_request(schema):
    """A regression: MessagePack's bytes, timestamps and non-text keys caused an EngineError."""
    async with running_socket() as served, served.raw() as raw:
        raw.send(opening(1, structured_outputs={"json": schema}))
        error = await raw.read()
        assert (error.kind, error.details["param"]) == ("InvalidRequest", "structured_outputs")


async def test_logprobs_come_as_details():
    async with running_socket() as served, served.raw() as raw:
        raw.send(opening(1, logprobs=2, prompt_logprobs=1))
        details = [message for message in await raw.read_until(End) if isinstance(message, Detail)]
        entries = [entry for message in details for entry in message.delta.logprobs]
        assert len(entries) == 3
        assert all(len(entry.top) == 2 for entry in entries)
        assert details[0].delta.prompt_logprobs


async def test_too_many_streams_are_refused_one_by_one():
    engine = ScriptedEngine()
    async with running_socket(engine=engine, max_streams=2) as served, served.raw() as raw:
        raw.send(opening(1), opening(2), opening(3))
        error = (await raw.read_until(Error))[-1]
        assert (error.id, error.kind, error.details["reason"]) == (3, "Overloaded", "connection_full")
        assert served.manager.statistics().open == 2


async def test_a_full_manager_s_refusal_has_retry_after():
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=0), drain_timeout=1)
    async with running_socket(engine=ScriptedEngine(), config=config) as served, SocketClient(served.addresses[0]) as client:
        async with client.stream(request(**SHORT)):
            with pytest.raises(Overloaded) as caught:
                await client.generate("hi")
        assert caught.value.reason == "queue_full"
        assert caught.value.retry_after > 0
        await served.quiet()


WRONG: dict[str, Any] = {
    "a frame before the hello": ([Ping(1)], "hello", False),
    "a second hello": ([Hello(1)], "second hello", True),
    "another version": ([Hello(99)], "version 1, not 99", False),
    "an open id": ([opening(1, **ENDLESS), opening(1)], "already open", True),
    "a message of the server's": ([Pong(1)], "not a valid message", True),
    "a long hello": ([Hello(1, "x" * 5000)], "at most 4096", False),
    "a long frame": ([Ping(1), b"\x7f\xff\xff\xff"], "at most 4194304", True),
    "nonsense": ([b"GET / HTTP/1.1\r\n\r\n"], "bytes; at most", False),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_protocol_violation_ends_only_its_own_connection_with_an_error(name, monkeypatch):
    # A regression: open streams continued until the client had read the error and the connection
    # ended.
    monkeypatch.setattr(connection, "HELLO_SECONDS", 60.0)
    sent, words, greet = WRONG[name]
    async with running_socket(time_scale=0.5) as served, served.raw() as neighbour, served.raw(greet=greet) as raw:
        neighbour.send(opening(1, max_tokens=20))
        for message in sent:
            if isinstance(message, bytes):
                raw.writer.write(message)
            else:
                raw.send(message)
        error = (await raw.read_until(Error))[-1]
        assert (error.id, error.kind) == (0, "FrameError")
        assert words in error.message
        assert await raw.read() is None
        assert (await neighbour.read_until(End))[-1].usage.completion_tokens == 20
        await served.quiet()


@pytest.mark.parametrize("key", ["", "wrong", None])
async def test_a_wrong_key_is_refused_and_the_right_one_is_accepted(key):
    async with running_socket(key="secret") as served:
        with pytest.raises(FrameError, match="the API key is missing or invalid"):
            async with SocketClient(served.addresses[0], key=key):
                pass
        async with SocketClient(served.addresses[0], key="secret") as client:
            assert (await client.generate("hi", sampling=Sampling(max_tokens=2))).usage.completion_tokens == 2


async def flood(raw, count):
    """Open and cancel streams; return the ids that were answered."""
    for start in range(1, count, 50):
        raw.send(*(message for number in range(start, start + 50) for message in (opening(number, **ENDLESS), Cancel(number))))
        await raw.writer.drain()
    ended = set()
    while len(ended) < count and (message := await raw.read()) is not None:
        if isinstance(message, Error) and message.id:
            assert message.kind in ("RequestCancelled", "Overloaded")
            assert message.id not in ended
            ended.add(message.id)
        elif isinstance(message, Error):
            assert "too many streams were cancelled" in message.message
    return ended


async def test_many_opens_and_cancels_leave_nothing():
    async with running_socket(time_scale=0.1, max_streams=64) as served, served.raw() as raw:
        assert len(await flood(raw, connection.MAX_FRUITLESS)) == connection.MAX_FRUITLESS
        await served.quiet()
        # After one stream that is read to its end, as many again are allowed.
        raw.send(opening(10_001, max_tokens=2))
        await raw.read_until(End)
        assert len(await flood(raw, connection.MAX_FRUITLESS)) == connection.MAX_FRUITLESS


async def test_a_client_that_only_opens_and_cancels_is_disconnected_and_others_continue():
    async with running_socket(time_scale=0.1) as served, served.raw() as other:
        for _ in range(3):
            async with served.raw() as raw:
                with suppress(ConnectionError):
                    assert len(await flood(raw, 10_000)) < 10_000
                other.send(opening(1, max_tokens=2))
                await other.read_until(End)
        await served.quiet()


async def test_a_flood_of_pings_without_reading_is_paused_and_others_continue():
    async with running_socket(time_scale=0.1) as served, served.raw() as flood, served.raw() as other:
        flood.writer.transport.pause_reading()
        ping = frames.encode(Ping(1)) * 10_000
        with anyio.move_on_after(1) as scope:
            for _ in range(1000):
                flood.writer.write(ping)
                await flood.writer.drain()
        assert scope.cancelled_caught, "70 MB of pings were taken in, and their answers kept"
        other.send(opening(1))
        await other.read_until(End)


async def test_a_reader_that_stalls_costs_no_more_than_its_answer_and_is_given_up(monkeypatch):
    # Half a minute by default.
    monkeypatch.setattr("frontends.net.deadlines.WRITE_SECONDS", 0.5)
    engine = ScriptedEngine()
    async with running_socket(engine=engine) as served, served.raw() as raw:
        raw.send(opening(1, credit=2**31 - 1))
        await raw.read_until(Started)
        raw.writer.transport.pause_reading()
        sink = await scripted(engine)
        with anyio.fail_after(20):
            while served.manager.statistics().open:
                sink.put(Delta("x" * 4096, (1,)))
                await anyio.sleep(0.001)
        assert engine.aborted


async def test_no_hello_ends_the_connection(monkeypatch):
    monkeypatch.setattr("frontends.rawsocket.connection.HELLO_SECONDS", 0.05)
    async with running_socket() as served, served.raw(greet=False) as raw:
        assert "no hello" in (await raw.read()).message
        assert await raw.read() is None


# The client


@pytest.fixture
async def served():
    async with running_socket(time_scale=0.5) as served:
        yield served


@pytest.fixture
async def client(served):
    async with SocketClient(served.addresses[0]) as client:
        yield client


async def test_a_completion_is_the_manager_s_own(served, client):
    for fields in ({}, {"logprobs": 2}, {"stop": ("e",)}):
        same = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.0, **fields}
        remote, direct = await client.generate(request(**same)), await served.manager.generate(request(**same))
        assert (remote.text, remote.token_ids, remote.finish_reason, remote.stop_reason) == (
            direct.text, direct.token_ids, direct.finish_reason, direct.stop_reason,
        )  # fmt: skip
        assert remote.logprobs == direct.logprobs
        assert remote.usage.completion_tokens == direct.usage.completion_tokens


async def test_a_long_answer_outlives_its_first_credit(client):
    completion = await client.generate(request(prompt="hi", max_tokens=700, ignore_eos=True))
    assert completion.usage.completion_tokens == 700


async def test_a_token_cancels_the_remote_request_too(served, client):
    token = CancellationToken()
    with pytest.raises(RequestCancelled, match="bored"):
        async with client.stream(request(**ENDLESS), token) as stream:
            async for _ in stream:
                token.cancel("bored")
    await served.quiet()


async def test_an_engine_s_error_comes_after_the_tokens_before_it():
    engine = ScriptedEngine()
    async with running_socket(engine=engine) as served, SocketClient(served.addresses[0]) as client:
        async with client.stream(request(**SHORT)) as stream:
            sink = await scripted(engine)
            sink.put(Delta("a", (1,)))
            sink.fail(EngineError("bad luck"))
            assert (await anext(stream)).text == "a"
            with pytest.raises(EngineError, match="bad luck"):
                await anext(stream)


async def test_the_loss_of_the_server_fails_every_stream():
    engine = ScriptedEngine()
    manager = EngineManager(engine, ManagerConfig(drain_timeout=0.1))
    async with manager, open_server(manager, "sim", [parse_address("tcp://127.0.0.1:0")]) as (address,):
        async with SocketClient(str(address)) as client:
            async with client.stream(request(**SHORT)) as stream:
                client.wire.transport.abort()
                with pytest.raises(EngineDead, match=f"connection to {address} was lost"):
                    await anext(stream)
            with pytest.raises(EngineDead, match="was lost"):
                await client.generate("hi")


async def test_a_request_above_the_server_s_limit_fails_before_it_is_sent(client):
    with pytest.raises(Exception, match="is larger than"):
        await client.generate("x" * (5 * 2**20))
    assert (await client.generate("hi", sampling=Sampling(max_tokens=1))).text


async def test_a_ping_comes_back(client):
    assert 0 < await client.ping() < 5
    assert client.model == "sim"


async def test_a_missing_server_is_an_os_error():
    with pytest.raises(OSError, match="Connect call failed"):
        async with SocketClient("tcp://127.0.0.1:1"):
            pass


async def test_tls_works_and_an_unknown_certificate_is_not_trusted():
    tls = TLS.of(DATA / "localhost.pem", DATA / "localhost.key")
    async with running_socket(listen="tls://127.0.0.1:0", tls=tls) as served:
        trusting = ssl.create_default_context(cafile=str(DATA / "localhost.pem"))
        async with SocketClient(served.addresses[0], tls=trusting) as client:
            assert (await client.generate("hi", sampling=Sampling(max_tokens=4))).usage.completion_tokens == 4
        with pytest.raises(ssl.SSLCertVerificationError):
            async with SocketClient(served.addresses[0]):
                pass


async def test_only_its_owner_can_use_a_unix_socket_and_it_is_removed_afterwards(tmp_path):
    path = tmp_path / "llmserve.sock"
    async with running_socket(listen=f"unix://{path}"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_a_dead_server_s_socket_is_replaced_and_a_living_server_s_is_not(tmp_path):
    path = tmp_path / "llmserve.sock"
    left = asyncio.start_unix_server(lambda *_: None, path)
    server = await left
    server.close()
    await server.wait_closed()
    assert path.exists()
    async with running_socket(listen=f"unix://{path}"):
        with pytest.raises(Exception, match=f"{path}: Address already in use"):
            async with running_socket(listen=f"unix://{path}"):
                pass
        async with SocketClient(f"unix://{path}") as client:
            assert await client.ping() > 0


@pytest.mark.parametrize(
    "text", ["", "9000", "http://h:1", "tcp://h", "tcp://:1", "tcp://h:99999", "tcp://h:1/x", "unix://h/x", "unix:///", "tcp://h:1?q=1"]
)
def test_a_wrong_address_is_named(text):
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:9000", "tls://example.org:1", "tcp://[::1]:9000", "unix:///run/x.sock"])
def test_an_address_reads_as_it_was_written(text):
    assert str(parse_address(text)) == text


async def test_while_it_drains_streams_finish_and_new_ones_are_refused():
    engine = ScriptedEngine()
    async with running_socket(engine=engine) as served, SocketClient(served.addresses[0]) as client, anyio.create_task_group() as tasks:
        async with client.stream(request(**SHORT)) as stream:
            tasks.start_soon(served.manager.drain)
            await anyio.sleep(0.01)
            with pytest.raises(Overloaded) as caught:
                await client.generate("hi")
            assert caught.value.reason == "draining"
            engine.finish(engine.submitted[0])
            assert [delta.finish_reason async for delta in stream][-1] == "stop"


async def test_a_connection_above_the_limit_gets_an_error_and_the_next_one_is_accepted():
    limiter = ConnectionLimiter(1)
    async with running_socket(limiter=limiter) as served:
        async with served.raw() as first:
            first.send(Ping(1))
            assert (await first.read()).number == 1
            async with served.raw(greet=False) as second:
                assert "connection limit is reached" in (await second.read()).message
                assert await second.read() is None
        with anyio.fail_after(5):
            while limiter.inside:
                await anyio.sleep(0.01)
        async with served.raw() as third:
            third.send(Ping(3))
            assert (await third.read()).number == 3
    assert (limiter.inside, limiter.rejected) == (0, 1)
