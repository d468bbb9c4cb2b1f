"""The HTTP server through a real socket: routes, statuses, refusals, disconnects."""

import asyncio
import pathlib
import random
import shlex
import time

import aiohttp
import anyio
import msgspec
import pytest
from engines import ScriptedEngine
from http_support import running_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from frontends.http import event_stream
from frontends.http.app import MAX_BODY
from llmserve import AdmissionConfig, EngineError, GenerationRequest, ManagerConfig, RestartConfig, Sampling, State
from llmserve.engines.vllm.outputs import translate
from llmserve.request import Delta

README = pathlib.Path(__file__).parents[2] / "README.md"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
TEXT = {"prompt": "hi", "max_tokens": 4, "temperature": 0}
ENDLESS = {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True}


async def events(response):
    """Return the decoded payloads of a stream, and its last one as a string."""
    body = await response.text()
    payloads = [block.removeprefix("data: ") for block in body.split("\n\n")[:-1]]
    return [payload if payload == "[DONE]" else msgspec.json.decode(payload) for payload in payloads]


async def until_quiet(manager, seconds=2.0):
    with anyio.fail_after(seconds):
        while manager.statistics().open or manager.statistics().engine.running or manager.statistics().engine.waiting:
            await anyio.sleep(0.01)
    assert (manager.statistics().running, manager.statistics().waiting) == (0, 0)


async def test_a_chat_is_answered(server):
    status, body, _ = await server.post("/v1/chat/completions", CHAT)
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "sim"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 4


@pytest.mark.parametrize("path_and_body", [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)], ids=["chat", "text"])
async def test_a_stream_has_the_same_content_as_a_whole_answer(server, path_and_body):
    path, body = path_and_body
    _, whole, _ = await server.post(path, body)
    async with server.session.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        # By default nginx buffers an answer without this header.
        assert response.headers["X-Accel-Buffering"] == "no"
        *chunks, usage, done = await events(response)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {**whole["usage"], "prompt_tokens_details": usage["usage"]["prompt_tokens_details"]}
    texts = [chunk["choices"][0].get("text") or chunk["choices"][0].get("delta", {}).get("content") or "" for chunk in chunks]
    choice = whole["choices"][0]
    assert "".join(texts) == choice.get("text", choice.get("message", {}).get("content"))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]] == ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_running_usage_counts_the_written_tokens(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with server.session.post("/v1/completions", json={**TEXT, "stream": True, "stream_options": options}) as response:
        *chunks, final, _ = await events(response)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == final["usage"]["completion_tokens"] == 4


async def test_a_chat_stream_begins_with_the_role(server):
    async with server.session.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        first, *_ = await events(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}


async def test_the_first_event_is_the_first_token_s():
    """A regression: the role came at admission; `vllm bench serve` took it for the first token."""
    engine = ScriptedEngine()
    async with running_server(engine) as server, server.session.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status == 200
        with anyio.fail_after(5):
            while not engine.submitted:
                await anyio.sleep(0.01)
            engine.finish(engine.submitted[0], "words")
            written, _ = await response.content.readchunk()
        assert b'"role":"assistant"' in written
        assert b"words" in written


async def test_choices_are_numbered_prompt_by_prompt(server):
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "temperature": 0}
    _, answer, _ = await server.post("/v1/completions", body)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert answer["usage"]["prompt_tokens"] == 2  # each prompt once
    assert answer["usage"]["completion_tokens"] == 12


async def test_choices_of_a_stream_come_interleaved_and_complete(server):
    async with server.session.post("/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 3, "stream": True}) as response:
        *chunks, done = await events(response)
    assert done == "[DONE]"
    finished = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1]


async def test_more_choices_than_slots_get_through():
    config = ManagerConfig(admission=AdmissionConfig(max_running=2, max_waiting=10))
    async with running_server(config=config) as server:
        for stream in (False, True):
            async with server.session.post("/v1/completions", json={**TEXT, "n": 8, "stream": stream}) as response:
                assert response.status == 200
                assert await response.read()
        await until_quiet(server.manager)


async def test_a_refusal_of_one_choice_is_a_refusal_of_all():
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=7))
    async with running_server(config=config, time_scale=1.0) as server:
        for stream in (False, True):
            # An idle server would have slots for all of them, but this one is busy.
            async with server.manager.stream(GenerationRequest("x", sampling=Sampling(max_tokens=10_000, ignore_eos=True))):
                status, body, headers = await server.post("/v1/completions", {**TEXT, "n": 8, "stream": stream})
            assert status == 503
            assert body["error"]["code"] == "overloaded"
            assert int(headers["Retry-After"]) >= 1
            await until_quiet(server.manager)


async def test_echo_gives_the_prompt_back_with_its_logprobs(server):
    for prompt in ("hi", [104, 105]):
        _, body, _ = await server.post("/v1/completions", {**TEXT, "prompt": prompt, "echo": True, "logprobs": 1})
        choice = body["choices"][0]
        assert choice["text"].startswith("hi")
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["token_logprobs"][0] is None
        assert [choice["text"][offset] for offset in logprobs["text_offset"][:2]] == ["h", "i"]
        async with server.session.post(
            "/v1/completions", json={**TEXT, "prompt": prompt, "echo": True, "logprobs": 1, "stream": True}
        ) as response:
            *chunks, _ = await events(response)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
        streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
        assert [offset for part in streamed for offset in part["text_offset"]] == logprobs["text_offset"]


async def test_chat_logprobs_have_bytes_and_alternatives(server):
    _, body, _ = await server.post("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3})
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    assert all(bytes(entry["bytes"]).decode() == entry["token"] and len(entry["top_logprobs"]) == 3 for entry in content)


async def test_generate_uses_llmserve_s_field_names(server):
    status, body, _ = await server.post("/generate", TEXT)
    assert status == 200
    assert body["finish_reason"] == "length"
    assert len(body["token_ids"]) == 4


async def test_tokens_make_a_round_trip(server):
    _, body, _ = await server.post("/tokenize", {"prompt": "hello"})
    assert body["count"] == len(body["tokens"]) == 5
    _, body, _ = await server.post("/detokenize", {"tokens": body["tokens"]})
    assert body == {"prompt": "hello"}
    _, chat, _ = await server.post("/tokenize", {"messages": CHAT["messages"]})
    assert chat["count"] > 2


async def test_the_model_is_listed_under_the_name_it_is_served_by(server):
    async with server.session.get("/v1/models") as response:
        (card,) = (await response.json())["data"]
    assert card["id"] == "sim"
    assert 0 < card["created"] <= time.time()
    async with server.session.get("/v1/models/sim") as response:
        assert await response.json() == card
    async with server.session.get("/v1/models/other") as response:
        assert response.status == 404


async def test_adapters_are_listed_as_models():
    async with running_server(adapters=("sql", "poetry")) as server:
        async with server.session.get("/v1/models") as response:
            cards = (await response.json())["data"]
        assert [(card["id"], card.get("parent")) for card in cards] == [("sim", None), ("sql", "sim"), ("poetry", "sim")]
        async with server.session.get("/v1/models/sql") as response:
            assert await response.json() == cards[1]
        texts = {}
        for model in ("sim", "sql", "poetry"):
            for path, body, text in (("/v1/completions", TEXT, "text"), ("/v1/chat/completions", CHAT, "message")):
                fields = {**body, "model": model, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
                status, answer, _ = await server.post(path, fields)
                assert (status, answer["model"]) == (200, model)
                texts[model, path] = str(answer["choices"][0][text])
        assert len(set(texts.values())) == 6
        assert (await server.post("/generate", {"prompt": "hi", "adapter": "sql"}))[0] == 200
        status, body, _ = await server.post("/generate", {"prompt": "hi", "adapter": "other"})
        assert (status, body["error"]["param"], body["error"]["code"]) == (404, "adapter", "model_not_found")
        assert (await server.post("/v1/completions", {**TEXT, "model": "other"}))[0] == 404


async def test_before_the_engine_is_up_an_unknown_model_is_503_and_not_404():
    async with running_server(adapters=("sql",), start_seconds=0.0) as server:
        server.manager.state = State.RESTARTING
        (member,) = server.manager._pool.members
        server.manager._pool.lose(member)
        status, body, _ = await server.post("/v1/completions", {**TEXT, "model": "sql"})
        assert (status, body["error"]["code"]) == (503, "unavailable")
        server.manager._pool._engine_up(member)


BAD = [
    ("/v1/completions", b"{", 400, None),
    ("/v1/completions", b'{"prompt": "hi", "temperature": NaN}', 400, "temperature"),
    ("/v1/completions", {**TEXT, "model": "other"}, 404, "model"),
    ("/v1/completions", {**TEXT, "model": "x" * 1000}, 404, "model"),
    ("/v1/completions", {**TEXT, "model": "x" * 10**6}, 400, "model"),
    ("/v1/completions", {"prompt": ""}, 400, "prompt"),
    ("/v1/completions", {"prompt": "x" * 10**6}, 400, "prompt"),
    ("/v1/completions", {"prompt": [10**6]}, 400, "prompt"),
    ("/v1/completions", {**TEXT, "max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", {**TEXT, "min_tokens": 10**6, "max_tokens": 10**6}, 400, "min_tokens"),
    ("/v1/completions", {**TEXT, "stop_token_ids": [10**6]}, 400, "stop_token_ids"),
    ("/v1/chat/completions", {"messages": "hi"}, 400, "messages"),
    ("/v1/chat/completions", {}, 400, "messages"),
    ("/v1/completions", b" " * (MAX_BODY + 1), 413, None),
    ("/v1/nothing", {}, 404, None),
    ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
    ("/generate", {"prompt": "hi", "deadline": -1}, 400, "deadline"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), BAD, ids=range(len(BAD)))
async def test_bad_input_gets_openai_s_error_object_and_the_next_request_works(server, path, body, status, param):
    got, answer, _ = await server.post(path, body)
    assert got == status
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
    assert 0 < len(answer["error"]["message"]) <= 512
    assert (await server.post("/v1/completions", TEXT))[0] == 200
    await until_quiet(server.manager)


async def test_a_wrong_method_is_405(server):
    async with server.session.get("/v1/completions") as response:
        assert response.status == 405
        assert "error" in await response.json()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_server_answers_503_with_retry_after_to_streams_too(stream):
    engine = ScriptedEngine()
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=0), drain_timeout=1)
    async with running_server(engine, config) as server, server.session.post("/generate", json={**TEXT, "stream": True}):
        status, body, headers = await server.post("/v1/completions", {**TEXT, "stream": stream})
        assert status == 503
        assert body["error"]["code"] == "overloaded"
        assert int(headers["Retry-After"]) >= 1
        assert int(headers["Retry-After-Ms"]) > 0
        async with server.session.get("/metrics", headers={"Accept": "text/plain"}) as response:
            assert 'llmserve_refused_total{reason="queue_full"} 1.0' in await response.text()


async def test_an_engine_that_is_paused_is_503_and_when_to_come_back():
    class RetryableRequestError(Exception):
        """A metric of vLLM, recognized by its name."""

    engine = ScriptedEngine()
    async with running_server(engine) as server, anyio.create_task_group() as tasks:

        async def refuse():
            await engine.asked()
            (sink,) = engine.sinks.values()
            sink.fail(translate(RetryableRequestError("Generation is paused.")))

        tasks.start_soon(refuse)
        status, body, headers = await server.post("/v1/completions", TEXT)
        assert (status, body["error"]["code"]) == (503, "unavailable")
        assert "Generation is paused." in body["error"]["message"]
        assert (headers["Retry-After"], headers["Retry-After-Ms"]) == ("1", "1000")


async def test_a_tenant_s_own_limit_is_429():
    config = ManagerConfig(admission=AdmissionConfig(tenant_limit=1), drain_timeout=1)
    async with running_server(ScriptedEngine(), config) as server:
        async with server.session.post("/v1/completions", json={**TEXT, "user": "a", "stream": True}):
            status, body, headers = await server.post("/v1/completions", {**TEXT, "user": "a"})
            assert status == 429
            assert body["error"]["code"] == "rate_limit_exceeded"
            assert "Retry-After" in headers


async def test_a_request_timeout_is_504(server):
    async with running_server(time_scale=1.0) as server:
        status, body, _ = await server.post("/v1/completions", ENDLESS, headers={"X-Request-Timeout": "0.05"})
        assert status == 504
        assert body["error"]["code"] == "deadline_exceeded"
        status, body, _ = await server.post("/v1/completions", TEXT, headers={"X-Request-Timeout": "soon"})
        assert (status, body["error"]["param"]) == (400, "X-Request-Timeout")


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event():
    engine = ScriptedEngine()
    async with running_server(engine) as server, anyio.create_task_group() as tasks:

        async def script():
            await engine.asked()
            (sink,) = engine.sinks.values()
            sink.put(Delta("a", (1,)))
            await anyio.sleep(0.05)
            sink.fail(EngineError("bad luck"))

        tasks.start_soon(script)
        async with server.session.post("/v1/completions", json={**TEXT, "stream": True}) as response:
            assert response.status == 200
            text, error, done = await events(response)
        assert text["choices"][0]["text"] == "a"
        assert error["error"]["code"] == "engine_error"
        assert done == "[DONE]"


async def test_a_slow_reader_gets_missed_tokens_as_one_chunk():
    engine = ScriptedEngine()
    async with running_server(engine) as server, server.session.post("/v1/completions", json={**TEXT, "stream": True}) as response:
        await engine.asked()
        (sink,) = engine.sinks.values()
        # In one step, like an engine that generates several tokens per step.
        for text in "abc":
            sink.put(Delta(text, (1,)))
        engine.finish(engine.submitted[0], "d")
        found = await events(response)
        assert [event["choices"][0]["text"] for event in found[:-1]] == ["abcd"]


async def test_a_reader_that_stalls_costs_no_more_than_its_answer_and_is_given_up(monkeypatch):
    # Half a minute by default.
    monkeypatch.setattr("frontends.net.deadlines.WRITE_SECONDS", 0.5)
    engine = ScriptedEngine()
    async with running_server(engine) as server:
        async with await anyio.connect_tcp("127.0.0.1", int(server.url.rpartition(":")[2])) as stream:
            body = b'{"prompt": "hi", "max_tokens": 50, "stream": true}'
            await stream.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await engine.asked()
            (sink,) = engine.sinks.values()
            with anyio.fail_after(20):
                while server.manager.statistics().open:
                    sink.put(Delta("x" * 4096, (1,)))
                    await anyio.sleep(0.001)
            assert engine.aborted


async def test_http_1_0_gets_the_events_without_chunks(server):
    async with await anyio.connect_tcp("127.0.0.1", int(server.url.rpartition(":")[2])) as stream:
        body = b'{"prompt": "hi", "max_tokens": 3, "ignore_eos": true, "stream": true}'
        await stream.send(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = b""
        try:
            while True:
                answer += await stream.receive()
        except anyio.EndOfStream:
            pass
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_the_engine_s_death_is_503_everywhere():
    engine = ScriptedEngine()
    async with running_server(engine, config=ManagerConfig(restart=RestartConfig(most=0))) as server:
        engine.death.set()
        while server.manager.state is not State.FAILED:
            await anyio.sleep(0.001)
        assert (await server.post("/v1/completions", TEXT))[0] == 503
        for path in ("/health", "/health/ready", "/health/live"):
            async with server.session.get(path) as response:
                assert response.status == 503


async def submitted(engine, count=1):
    with anyio.fail_after(20):
        while len(engine.submitted) < count:
            await anyio.sleep(0.005)


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
async def test_a_stream_that_fails_before_its_first_token_is_a_status_and_keeps_the_connection(path):
    engine = ScriptedEngine()
    async with running_server(engine) as server:
        for number in range(2):
            async with anyio.create_task_group() as tasks:

                async def fail(number=number):
                    await submitted(engine, number + 1)
                    engine.sinks[engine.submitted[number]].fail(EngineError("it cannot"))

                tasks.start_soon(fail)
                status, body, headers = await server.post(path, {**TEXT, "stream": True})
            assert (status, body["error"]["message"]) == (500, "it cannot")
            assert "Transfer-Encoding" not in headers


async def test_a_client_gets_the_headers_although_no_token_comes(monkeypatch):
    monkeypatch.setattr(event_stream, "HEADERS_SECONDS", 0.05)
    engine = ScriptedEngine()
    async with running_server(engine) as server:
        async with server.session.post("/generate", json={**TEXT, "stream": True}) as response:
            assert response.status == 200
            assert engine.samplings[engine.submitted[0]].max_tokens == 4
            # From now on an error is an event.
            engine.sinks[engine.submitted[0]].fail(EngineError("it cannot"))
            assert b"it cannot" in await response.read()


async def test_a_stream_interval_makes_fewer_events(server):
    counts = []
    for interval in (1, 4):
        body = {**TEXT, "max_tokens": 9, "ignore_eos": True, "stream": True, "stream_interval": interval}
        async with server.session.post("/v1/completions", json=body) as response:
            *chunks, _ = await events(response)
        counts.append(len([chunk for chunk in chunks if chunk["choices"]]))
    assert counts == [9, 3]


async def test_while_draining_the_listener_answers_503():
    engine = ScriptedEngine()
    async with running_server(engine) as server, anyio.create_task_group() as tasks:
        async with server.session.post("/generate", json={**TEXT, "stream": True}) as response:
            tasks.start_soon(server.manager.drain)
            await anyio.sleep(0.01)
            async with server.session.get("/health/ready") as ready:
                assert ready.status == 503
                assert "Retry-After" in ready.headers
            async with server.session.get("/health/live") as live:
                assert live.status == 200
            assert (await server.post("/v1/completions", TEXT))[0] == 503
            engine.finish(engine.submitted[0])
            assert b"[DONE]" in await response.read()


async def test_fifty_clients_that_leave_at_random_leave_nothing_behind():
    rng = random.Random(1)
    config = ManagerConfig(admission=AdmissionConfig(max_running=8, max_waiting=100), drain_timeout=1)
    async with running_server(config=config, time_scale=1.0) as server:

        async def leave(stream, after):
            timeout = aiohttp.ClientTimeout(total=after)
            with pytest.raises((TimeoutError, aiohttp.ClientError)):
                async with aiohttp.ClientSession(server.url) as session:
                    async with session.post("/v1/completions", json={**ENDLESS, "stream": stream}, timeout=timeout) as response:
                        await response.read()

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(leave, bool(number % 2), rng.uniform(0.005, 0.5))
        await until_quiet(server.manager)
        assert server.manager.metrics()["requests"]["completed"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_it_waits_is_forgotten(stream):
    engine = ScriptedEngine()
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=5), drain_timeout=1)
    async with running_server(engine, config) as server, server.session.post("/generate", json={**TEXT, "stream": True}):
        waiting = asyncio.ensure_future(server.post("/v1/completions", {**TEXT, "stream": stream}))
        while not server.manager.statistics().waiting:
            await anyio.sleep(0.001)
        waiting.cancel()
        with anyio.fail_after(2):
            while server.manager.statistics().waiting:
                await anyio.sleep(0.01)
        assert len(engine.submitted) == 1


# The last two are those of a browser and of axios.
PROMETHEUS = (None, "", "*/*", "text/*", "text/html,application/xhtml+xml,*/*;q=0.8", "application/json, text/plain, */*")


@pytest.mark.parametrize("accept", PROMETHEUS)
async def test_metrics_are_text_for_a_client_that_does_not_ask_for_json(server, accept):
    """Clients such as curl and routers for vLLM send `*/*` or no header."""
    headers = {} if accept is None else {"Accept": accept}
    async with server.session.get("/metrics", headers=headers, skip_auto_headers=("Accept",)) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert any(family.name == "llmserve_ready" for family in parse_text(await response.text()))


async def test_metrics_are_json_by_name_and_text_for_scrapers(server):
    await server.post("/v1/completions", TEXT)
    for path, headers in (
        ("/metrics.json", {}),
        ("/metrics", {"Accept": "application/json"}),
        ("/metrics", {"Accept": "Application/JSON, */*"}),
    ):
        async with server.session.get(path, headers=headers) as response:
            body = await response.json()
        assert body["requests"]["completed"] == 1
        assert body["ttft"]["count"] == 1

    async with server.session.get("/metrics", headers={"Accept": "text/plain"}) as response:
        families = {family.name: family for family in parse_text(await response.text())}
    completed = [sample.value for sample in families["llmserve_requests"].samples if sample.labels.get("outcome") == "completed"]
    assert completed == [1.0]

    async with server.session.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as response:
        assert "openmetrics" in response.headers["Content-Type"]
        families = {family.name: family for family in parse_openmetrics(await response.text())}
    assert families["llmserve_time_to_first_token_seconds"].samples[-1].value > 0


async def test_the_readme_s_request_is_accepted_as_curl_sends_it(server):
    (line,) = [line for line in README.read_text().splitlines() if line.startswith("curl ")]
    _, address, *rest = shlex.split(line)
    # curl's default content type.
    headers, body = {"Content-Type": "application/x-www-form-urlencoded"}, ""
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        if option == "-H":
            headers |= dict([value.split(": ")])
        else:
            body = value
    async with server.session.post(address.removeprefix("localhost:8000"), data=body, headers=headers) as response:
        assert response.status == 200
