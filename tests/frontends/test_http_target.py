"""The load generator's HTTP target against llmserve's server, and against faulty servers."""

import pathlib
import statistics

import anyio
import anyio.lowlevel
import attrs
import pytest
from aiohttp import web
from http_support import running_server

from benchmarks.generator.run import Generator
from benchmarks.targets import TargetError
from benchmarks.targets.http import HTTP
from benchmarks.targets.server import ClientOptions, find_model, open_session, parse_server
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload
from frontends.net.tls import TLS
from llmserve import AdmissionConfig, ManagerConfig

DATA = pathlib.Path(__file__).parents[1] / "data"
WORKLOAD = Workload(prompt=Fixed(8), output=Fixed(6), vocabulary=(1, 200))


async def measure(url, requests=6, concurrency=3, workload=WORKLOAD, options=None):
    server, model = await find_model(parse_server(url, options), None)
    async with open_session(server) as session:
        job = PointPlan(point=0, label="test", load=Load(concurrency=concurrency), workload=workload, requests=requests)
        generator = Generator(HTTP(session, server, model), job)
        await generator.run()
    return generator.measured.records


async def test_every_token_is_counted_where_it_was_delivered(server):
    records = await measure(server.url)
    assert {record.outcome for record in records} == {"ok"}
    assert all(sum(count for _, count in record.deliveries) == 6 == record.completion_tokens for record in records)


@pytest.mark.parametrize("prompts", ["chat", "text"])
async def test_a_prompt_may_be_text(server, prompts):
    records = await measure(server.url, options=ClientOptions(prompts=prompts))
    assert {record.outcome for record in records} == {"ok"}
    assert all(sum(count for _, count in record.deliveries) == 6 == record.completion_tokens for record in records)


async def test_an_unknown_certificate_is_accepted_only_on_request():
    tls = TLS.of(DATA / "localhost.pem", DATA / "localhost.key")
    async with running_server(tls=tls) as server:
        with pytest.raises(TargetError, match="certificate verify failed"):
            await measure(server.url)
        records = await measure(server.url, options=ClientOptions(insecure=True))
    assert {record.outcome for record in records} == {"ok"}


async def test_refusals_come_with_their_retry_after():
    config = ManagerConfig(admission=AdmissionConfig(max_running=1, max_waiting=0), drain_timeout=1)
    async with running_server(config=config, time_scale=1.0) as server:
        records = await measure(server.url, requests=12, concurrency=4)
    outcomes = [record.outcome for record in records]
    assert outcomes.count("ok") + outcomes.count("refused_503") == 12
    assert all(record.retry_after >= 1 for record in records if record.outcome == "refused_503")


CHUNK = b'data: {"choices": [{"text": "x"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 6}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (CHUNK * 6 + DONE, "ok"),
        (CHUNK * 2 + USAGE + DONE, "ok"),
        (CHUNK * 5 + DONE, "wrong_token_count"),
        (CHUNK * 6, "truncated"),
        (CHUNK * 3 + b'data: {"error": {"message": "bad luck"}}\n\n' + DONE, "error"),
        (b'{"error": {"message": "bad luck"}}', "error"),
    ],
    ids=["plain", "usage", "short", "cut off", "error in the middle", "error as the body"],
)
async def test_a_stream_that_ends_badly_is_never_a_success(body, outcome):
    async def completions(request):
        return web.Response(body=body, content_type="text/event-stream")

    (record,) = await measure_scripted(completions)
    assert record.outcome == outcome


@pytest.mark.parametrize(("status", "outcome"), [(429, "refused_429"), (503, "refused_503"), (504, "timeout"), (500, "error")])
async def test_statuses_are_distinguished(status, outcome):
    async def completions(request):
        return web.Response(status=status, headers={"Retry-After": "7"})

    (record,) = await measure_scripted(completions)
    assert (record.outcome, record.retry_after) == (outcome, 7.0)
    assert str(status) in record.detail


async def test_an_error_in_the_middle_keeps_the_server_s_message():
    """A regression: the record said that the event could not be decoded."""

    async def completions(request):
        body = b'data: {"error": null, "choices": [{"text": "x"}]}\n\n' + b'data: {"error": {"message": "bad luck"}}\n\n'
        return web.Response(body=body, content_type="text/event-stream")

    (record,) = await measure_scripted(completions)
    assert (record.outcome, record.detail, record.completion_tokens) == ("error", "bad luck", 1)


async def test_a_request_that_hangs_ends_at_its_timeout():
    """A regression: the run did not end."""

    async def completions(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(CHUNK)
        await anyio.sleep_forever()

    (record,) = await measure_scripted(completions, workload=attrs.evolve(WORKLOAD, timeout=0.2))
    assert (record.outcome, record.detail, record.completion_tokens) == ("timeout", "no end after 0.2 s", 1)
    assert record.finished >= 0.2


async def test_a_connection_serves_one_request_after_another():
    """A regression: a connection whose message ended a moment after its stream was closed."""
    connections = set()

    async def completions(request):
        connections.add(request.transport)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(CHUNK * 6 + DONE)
        await anyio.sleep(0.01)
        return response

    records = await measure_scripted(completions, requests=4)
    assert {record.outcome for record in records} == {"ok"}
    assert len(connections) == 1


async def test_a_redirection_is_not_followed():
    async def completions(request):
        raise web.HTTPPermanentRedirect("https://example.org/v1/completions")

    (record,) = await measure_scripted(completions)
    assert record.outcome == "error"
    assert record.detail.startswith("HTTP 308 to https://example.org/v1/completions")


async def test_a_request_has_the_content_type_json():
    """A regression: vLLM's own server refused every request."""

    async def completions(request):
        assert request.content_type == "application/json"
        return web.Response(body=CHUNK * 6 + DONE, content_type="text/event-stream")

    (record,) = await measure_scripted(completions)
    assert record.outcome == "ok"


async def test_a_connection_that_breaks_is_an_outcome():
    async def completions(request):
        request.transport.abort()
        await anyio.lowlevel.checkpoint()
        return web.Response()

    (record,) = await measure_scripted(completions)
    assert record.outcome == "connection"


# Seconds that a busy machine may add between a write and its arrival; the median of several requests
# must stay within them.
TOLERANCE = 0.03


@pytest.mark.parametrize("tokens", [1, 3])
async def test_known_times_come_back_within_the_tolerance(tokens):
    """The truth are the times of the server's writes: a busy machine also makes its waits longer."""
    gaps, written = [0.25, 0.4, 0.1, 0.4, 0.1], []

    async def completions(request):
        written.append(row := [anyio.current_time()])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, gap in enumerate(gaps, 1):
            await anyio.sleep(gap)
            row.append(anyio.current_time())
            await response.write(b'data: {"choices": [{"text": "x"}], "usage": {"completion_tokens": %d}}\n\n' % (number * tokens))
        await response.write(DONE)
        return response

    workload = Workload(prompt=Fixed(8), output=Fixed(5 * tokens), vocabulary=(1, 200))
    records = await measure_scripted(completions, requests=8, concurrency=8, workload=workload)
    assert {record.outcome for record in records} == {"ok"}
    assert all([count for _, count in record.deliveries] == [tokens] * 5 for record in records)
    times = [[record.intended, *(time for time, _ in record.deliveries)] for record in records]
    for index in range(len(gaps)):
        found, truth = (statistics.median(row[index + 1] - row[index] for row in rows) for rows in (times, written))
        # The first time begins when the client sends, before the server has the request.
        assert truth - TOLERANCE < found < truth + (TOLERANCE if index else 1.0)


async def measure_scripted(completions, requests=1, concurrency=1, workload=WORKLOAD):
    async def models(request):
        return web.json_response({"data": [{"id": "scripted"}]})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", completions)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return await measure(f"http://127.0.0.1:{runner.addresses[0][1]}", requests, concurrency, workload)
    finally:
        await runner.cleanup()


async def test_an_impossible_measurement_is_an_error_before_any_request(server):
    with pytest.raises(TargetError, match="cannot be reached"):
        await find_model(parse_server("http://127.0.0.1:9"), None)
    with pytest.raises(TargetError, match="does not serve 'other'"):
        await find_model(parse_server(server.url), "other")
