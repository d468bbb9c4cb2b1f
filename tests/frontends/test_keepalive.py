"""Comments in silent streams, and how clients handle them."""

import anyio
import openai
import pytest
from engines import ScriptedEngine
from http_support import running_server

from frontends.http.event_stream import COMMENT
from frontends.responses.events import PIECE
from frontends.responses.memory import ResponseMemory
from frontends.responses.stored import Name, Operation, StoredResponse
from llmserve import AdmissionConfig, Delta, ManagerConfig

pytestmark = pytest.mark.anyio
TEXT = {"prompt": "hi", "max_tokens": 2, "stream": True}
FULL = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=1), drain_timeout=1)
SOON = {"keepalive": 0.01}


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def comments(response, number=2):
    for _ in range(number):
        assert await response.content.readuntil(b"\n\n") == COMMENT


async def first_sink(engine):
    with anyio.fail_after(10):
        await engine.asked()
    return next(iter(engine.sinks.values()))


def finish(sink):
    sink.put(Delta("one", (1,)))
    sink.put(Delta("two", (2,), finish_reason="stop"))


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
async def test_a_stream_without_a_token_gets_comments_and_then_its_answer(path):
    """The first token is late, as after a long prefill."""
    engine = ScriptedEngine()
    async with running_server(engine, app=SOON) as server, server.session.post(path, json=TEXT) as response:
        await comments(response)
        finish(await first_sink(engine))
        text = await response.text()
    assert [line for line in text.splitlines() if line.startswith("data: ")][-1] == "data: [DONE]"
    assert text.count('"text":"') == 2 or '"text":"onetwo"' in text


async def test_a_queued_stream_gets_comments_and_its_refusal_as_an_event():
    engine = ScriptedEngine()
    async with running_server(engine, FULL, app=SOON) as server, server.session.post("/v1/completions", json=TEXT) as running:
        sink = await first_sink(engine)
        async with server.session.post("/v1/completions", json=TEXT, headers={"X-Request-Timeout": "0.5"}) as response:
            assert response.status == 200
            await comments(response)
            assert '"deadline_exceeded"' in (text := await response.text())
            assert text.endswith("data: [DONE]\n\n")
        async with server.session.post("/v1/completions", json=TEXT) as waiting:
            await comments(waiting)
            finish(sink)
            await running.read()
            finish(list(engine.sinks.values())[-1])
            assert (await waiting.text()).endswith("data: [DONE]\n\n")


async def test_an_error_before_the_interval_is_a_status():
    engine = ScriptedEngine()
    async with running_server(engine, FULL) as server, server.session.post("/v1/completions", json=TEXT):
        await first_sink(engine)
        status, body, _ = await server.post("/v1/completions", TEXT, headers={"X-Request-Timeout": "0.05"})
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded")


async def test_openai_s_client_skips_comments():
    engine = ScriptedEngine()
    async with running_server(engine, app=SOON) as server, openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.completions.create(model="sim", prompt="hi", max_tokens=2, stream=True)
        sink, seen = await first_sink(engine), []
        # Another stream with the same interval has got its comments by then.
        async with server.session.post("/v1/completions", json=TEXT) as beside:
            await comments(beside, 3)
        finish(sink)
        async for chunk in stream:
            seen.append(chunk.choices[0].text)
    assert "".join(seen) == "onetwo"


async def test_an_answer_that_is_given_again_has_no_comments():
    engine = ScriptedEngine()
    headers = {"Idempotency-Key": "k"}
    async with running_server(engine, app=SOON) as server:
        async with server.session.post("/v1/completions", json=TEXT, headers=headers) as response:
            await comments(response)
            finish(await first_sink(engine))
            await response.read()
        async with server.session.post("/v1/completions", json=TEXT, headers=headers) as again:
            assert again.headers["Idempotent-Replayed"] == "true"
            assert COMMENT not in (body := await again.read())
            assert body.endswith(b"data: [DONE]\n\n")


class Slow(ResponseMemory):
    """Takes a while, like the store of a busy supervisor."""

    async def ask(self, operation, stop=None):
        if operation.kind == "events":
            await anyio.sleep(5 * SOON["keepalive"])
        return await super().ask(operation, stop)


async def test_a_large_event_that_comes_in_pieces_has_no_comment_in_it():
    """A regression: the comment ended the event, and the client could not read it."""
    memory, name = Slow(lambda: 0.0), Name(None, "resp-a")
    large = b"data: %b\n\n" % (b"x" * 2 * PIECE)
    await memory.ask(Operation("add", name, StoredResponse("queued", background=True, items=b"", body=b"{}"), large))
    await memory.ask(Operation("replace", name, StoredResponse("completed", background=True, items=b"", body=b"{}")))
    async with running_server(app={**SOON, "responses": memory}) as server:
        async with server.session.get(f"/v1/responses/{name.id}", params={"stream": "true"}) as response:
            await comments(response, 1)
            text = await response.read()
    assert large in text
