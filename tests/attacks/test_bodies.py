"""Large bodies with any content: the field is refused before decoding, or never decoded.

The tests measure the objects that a decoder creates instead of its time, which depends on them.
"""

import asyncio
import io
import tracemalloc
from contextlib import contextmanager
from itertools import pairwise

import msgspec
import pytest
from attacks.bodies import AROUND, KINDS, full, large, with_field
from attacks.canary import check_error, probe
from http_support import running_server
from quiescence import check_quiescent
from socket_support import running_socket

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.net.turns import WorkQueue
from frontends.openai.completions import CompletionRequest
from frontends.openai.decoding import SMALL, BodyReader
from frontends.openai.requests import GenerateRequest
from frontends.openai.sizes import MAX_IDS, Undecoded
from frontends.rawsocket import frames
from llmserve import InvalidRequest, PromptTooLong

pytestmark = pytest.mark.anyio

SIZE = 2**19
CONTEXT = 2048
# Memory for copies of a body, and for the decoded content of a field of allowed size.
MAX_MADE = 6 * 2**20


@pytest.fixture
def anyio_backend():
    return "asyncio"


@contextmanager
def little_is_made(most=MAX_MADE):
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / 2**20:.1f} MiB were made"


@pytest.mark.parametrize("path", KINDS)
async def test_of_a_large_field_little_is_decoded(path):
    reader = BodyReader(KINDS[path], WorkQueue())
    ignored = {field.encode_name for field in msgspec.structs.fields(KINDS[path]) if field.type == Undecoded}
    for field, body in large(path, SIZE):
        with little_is_made():
            try:
                await reader.read(body, lambda _: None, CONTEXT)
                refused = None
            except InvalidRequest as error:
                refused = error
        if field in ignored:
            assert refused is None
        else:
            assert refused is not None, (field, body[:100])
            assert refused.param == field, (field, body[:100], refused)


async def test_over_frames():
    """Test the same bodies in MessagePack, whose lists begin with their lengths."""
    reader = BodyReader(GenerateRequest, WorkQueue(), msgspec.msgpack)
    for field, body in large("/generate", SIZE):
        packed = msgspec.msgpack.encode(msgspec.json.decode(body))
        with little_is_made(), pytest.raises(InvalidRequest) as caught:
            await reader.read(packed, lambda _: None, CONTEXT)
        assert caught.value.param == field, (field, body[:100], caught.value)


async def test_a_field_that_is_repeated_is_measured_each_time():
    one = b'"structured_outputs":{"json":{"a":' + full(60_000, b"[]") + b"}}"
    body = b'{"prompt":"hi",' + b",".join([one] * 16) + b"}"
    with little_is_made(), pytest.raises(InvalidRequest, match="in repeated fields"):
        await BodyReader(CompletionRequest, WorkQueue()).read(body, lambda _: None)


async def test_a_large_invalid_body_is_not_searched_for_non_finite_numbers():
    body = b'{"prompt":' + full(SIZE, b"[]") + b',"temperature":NaN}'
    with little_is_made(), pytest.raises(InvalidRequest, match="cannot be decoded"):
        await BodyReader(CompletionRequest, WorkQueue()).read(body, lambda _: None)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": 'a, [1] "b" {}' * 80_000},
        {"prompt": ['a, [1] "b" {}' * 1000] * 64},
        {"prompt": [[123] * 2048] * 64},
        {"prompt": list(range(100, 2148)), "user": "x" * 20_000},
        {"prompt": "hi", "logit_bias": {str(number): -100.0 for number in range(1024)}, "metadata": {"a": "b" * SIZE}},
        {"prompt": "hi", "structured_outputs": {"json": {"enum": ["word " * 10] * 1000}}},
    ],
    ids=["text", "texts", "lists of ids", "ids", "ignored", "schema"],
)
async def test_normal_large_bodies_are_decoded(body):
    data = msgspec.json.encode(body)
    assert len(data) > SMALL or "ids" in body
    decoded = await BodyReader(CompletionRequest, WorkQueue()).read(data, lambda body: body, CONTEXT)
    assert decoded.prompt == body["prompt"]


async def test_a_long_conversation_is_decoded():
    call = {"id": "call_1", "type": "function", "function": {"name": "a", "arguments": '{"path": "C:\\\\x\\\\", "text": "say \\"hi\\""}'}}
    turn = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"a": "\\"b\\""}'},
    ]
    body = {"messages": turn * 1024}
    for codec in (msgspec.json, msgspec.msgpack):
        decoded = await BodyReader(GenerateRequest, WorkQueue(), codec).read(codec.encode(body), lambda body: body, CONTEXT)
        assert len(decoded.messages) == 2048


@pytest.mark.parametrize("context", [None, 2048, 10**6])
async def test_ids_are_bounded_by_the_context(context):
    reader = BodyReader(CompletionRequest, WorkQueue())
    most = context or MAX_IDS
    within = await reader.read(with_field(CompletionRequest, "prompt", full(2 * most, b"1")), lambda body: body.prompt, context)
    assert len(within) == most
    with pytest.raises(PromptTooLong):
        await reader.read(with_field(CompletionRequest, "prompt", full(2 * most + SMALL, b"1")), lambda _: None, context)


ROWS = [
    ("/v1/chat/completions", "tools", b"{}", {400}),
    ("/v1/completions", "structured_outputs", b"{}", {400}),
    ("/v1/completions", "response_format", b"[]", {400}),
    ("/v1/completions", "metadata", b"[]", {200}),
    ("/v1/chat/completions", "metadata", b"{}", {200}),
    ("/v1/completions", "prompt", b"[]", {400}),
    ("/v1/chat/completions", "messages", b'{"role":"user"}', {400}),
    ("/detokenize", "tokens", b"1", {400}),
]


async def test_over_http():
    """Test bodies of the maximum size; the next request is served normally."""
    async with running_server() as server:
        song = await probe(server)
        for path, field, thing, expected in ROWS:
            before, after = AROUND.get(field, (b"", b"")) if field != "messages" else (b"", b"")
            body = with_field(KINDS[path], field, before + full(4 * 2**20 - 200, thing) + after)
            async with server.session.post(path, data=io.BytesIO(body), headers={"Content-Type": "application/json"}) as response:
                status, raw = response.status, await response.read()
            assert status in expected, (path, field, raw)
            assert status == 200 or check_error(status, raw, expected, (path, field))["param"] == field
        assert await probe(server) == song
        check_quiescent(server.manager)


STREAMS = 20


async def test_a_stream_holds_nothing_of_its_body():
    """A regression: a body and its decoded form stayed in memory until the answer's end."""
    body = b'{"prompt":"hi","stream":true,"max_tokens":2000,"ignore_eos":true,"metadata":"%b"}' % (b"x" * 2**20)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with running_server(time_scale=1.0, step_seconds=0.05, max_num_seqs=32) as server:
        port = int(server.url.rsplit(":", 1)[1])
        writers = []
        tracemalloc.start()
        try:
            for _ in range(STREAMS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head + body)
                writers.append(writer)
                await reader.readline()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert server.manager.statistics().open == STREAMS
        assert held < 4 * 2**20, f"{held / 2**20:.1f} MiB are held"
        for writer in writers:
            writer.close()


async def test_a_stream_of_the_raw_socket_holds_nothing_of_its_frame():
    request = msgspec.msgpack.encode({"prompt": "hi", "max_tokens": 2000, "ignore_eos": True})
    padding = {"padding": "x" * 2**20}
    async with running_socket(time_scale=1.0, step_seconds=0.05, max_num_seqs=32) as served, served.raw() as raw:
        tracemalloc.start()
        try:
            for number in range(1, STREAMS + 1):
                raw.send([1, number, 1000, msgspec.Raw(request), padding])
                await raw.read_until(frames.Started)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 4 * 2**20, f"{held / 2**20:.1f} MiB are held"


# Turns


def test_heavy_work_is_done_piece_by_piece_with_rests():
    loop = VirtualLoop()

    async def main():
        turns, began, ticks = WorkQueue(), [], []

        def work(seconds):
            began.append(loop.time())
            loop.spend(seconds)
            return seconds

        async def tick():
            while True:
                ticks.append(loop.time())
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        assert await asyncio.gather(*(turns.run(work, 0.05) for _ in range(8))) == [0.05] * 8
        ticking.cancel()
        assert [later - sooner for sooner, later in pairwise(began)] == pytest.approx([0.1] * 7)
        # No other task waited longer than for one piece.
        assert max(later - sooner for sooner, later in pairwise(ticks)) < 0.07

    loop.run_until_complete(main())
    loop.close()


async def test_a_cancelled_task_leaves_the_queue():
    turns = WorkQueue()
    first = asyncio.create_task(turns.run(lambda: 1))
    second = asyncio.create_task(turns.run(lambda: 2))
    await asyncio.sleep(0)
    second.cancel()
    assert await first == 1
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await turns.run(lambda: 3) == 3
