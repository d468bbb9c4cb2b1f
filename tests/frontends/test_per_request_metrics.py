"""What the operator adds to answers: the times of a request (`--per-request-metrics`), and usage (`--force-include-usage`)."""

import json
from typing import Any

import msgspec
import pytest
from http_support import running_server

from frontends.answers.generation import Extras
from frontends.openai.bodies import RequestMetrics
from llmserve import Timeline

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 3, "ignore_eos": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "ignore_eos": True},
    "/inference/v1/generate": {"token_ids": [1, 2], "sampling_params": {"max_tokens": 3, "ignore_eos": True}},
}


@pytest.fixture
async def server():
    async with running_server(app={"extras": Extras(metrics=True)}, time_scale=1.0) as server:
        yield server


async def usages(server, path, body):
    """Return the events of a stream with and without a usage."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with server.session.post(path, json=body) as response:
        lines = [line[6:] async for line in response.content if line.startswith(b"data: {")]
    events = [json.loads(line) for line in lines]
    return [event for event in events if event.get("usage")], [event for event in events if not event.get("usage")]


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_has_the_times_of_its_request(server, path):
    status, answer, _ = await server.post(path, BODIES[path])
    assert status == 200
    [last], others = await usages(server, path, BODIES[path])
    assert not any("metrics" in event for event in others)
    for found in (answer["metrics"], last["metrics"]):
        assert set(found) == {field.name for field in msgspec.structs.fields(RequestMetrics)}
        assert min(found.values()) >= 0
        # Two tokens follow the first one.
        assert found["mean_itl_ms"] == pytest.approx(found["generation_time_ms"] / 2)
        whole = found["time_to_first_token_ms"] + found["generation_time_ms"]
        assert found["tokens_per_second"] == pytest.approx(3 / whole * 1000)


async def test_several_sequences_have_none(server):
    for body in ({**BODIES["/v1/completions"], "n": 2}, {**BODIES["/v1/completions"], "prompt": ["a", "b"]}):
        _, answer, _ = await server.post("/v1/completions", body)
        assert answer["metrics"] is None


@pytest.mark.parametrize("path", BODIES)
async def test_without_the_option_an_answer_has_none(path):
    async with running_server() as server:
        _, answer, _ = await server.post(path, BODIES[path])
        assert "metrics" not in answer
        found, others = await usages(server, path, BODIES[path])
        assert not any("metrics" in event for event in found + others)


async def test_the_request_log_has_the_times_too():
    lines = []
    async with running_server(app={"extras": Extras(metrics=True), "log": lines.append}) as server:
        await server.post("/v1/completions", BODIES["/v1/completions"])
    (line,) = map(json.loads, lines)
    assert (line["outcome"], line["completion_tokens"]) == ("completed", 3)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (
            {"engine_scheduled": 3.0, "engine_first_token": 4.0, "engine_last_token": 8.0, "completion_tokens": 5},
            {
                "queue_time_ms": 2000.0,
                "time_to_first_token_ms": 1000.0,
                "generation_time_ms": 4000.0,
                "mean_itl_ms": 1000.0,
                "tokens_per_second": 1.0,
            },
        ),
        # An engine of another kind may report no times.
        (
            {"submitted": 2.0, "first_token": 3.0, "last_token": 3.0, "completion_tokens": 1},
            {"queue_time_ms": 1000.0, "time_to_first_token_ms": 1000.0, "generation_time_ms": 0.0, "tokens_per_second": 1.0},
        ),
        ({"submitted": 2.0}, {"queue_time_ms": 1000.0}),
        ({}, {}),
    ],
)
def test_they_follow_from_the_timeline(times, found):
    assert msgspec.to_builtins(RequestMetrics.of(Timeline(arrived=1.0, **times))) == found


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("options", [None, {"include_usage": False}])
async def test_every_event_has_a_usage_although_the_client_does_not_ask(path, options):
    async with running_server(app={"extras": Extras(usage=True)}) as server:
        body = {**BODIES[path], "stream": True, "stream_options": options}
        async with server.session.post(path, json=body) as response:
            events = [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: {")]
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert (counts[-1], events[-1]["choices"]) == (3, [])
        status, answer, _ = await server.post(path, BODIES[path])
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_other_streams_stay_as_they_are(path):
    body = (
        {"input": "hi", "stream": True} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    )
    found = []
    for extras in (Extras(), Extras(usage=True)):
        async with running_server(app={"extras": extras}) as server, server.session.post(path, json={**body, "stream": True}) as response:
            assert response.status == 200
            found.append([line async for line in response.content if line.startswith(b"event: ")])
    assert found[0] == found[1]
