"""Traces over both protocols, into a real collector."""

import argparse
import signal

import anyio
import pytest
from otlp_support import collector
from program_support import SIMULATED, SOCKET, fetch, program

from frontends.access.trace_context import trace_of, trace_of_mapping
from frontends.options.command_line import read
from frontends.program.settings import ServerSettings
from frontends.rawsocket.client import SocketClient
from llmserve import GenerationRequest, Sampling

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
FAST = ("--engine-arg", "time_scale=0.01")


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def stop(process):
    process.send_signal(signal.SIGTERM)
    with anyio.fail_after(30):
        assert await process.wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_collector_gets_spans_whose_stages_sum_to_the_request_s_time(tmp_path, workers):
    async with collector() as found, program(tmp_path, *FAST, "--workers", workers, "--otlp-endpoint", found.url) as (process, url, _):
        for _ in range(3):
            body = {"prompt": "hi", "max_tokens": 20, "ignore_eos": True}
            status, _ = await fetch(f"{url}/v1/completions", body, HEADERS)
            assert status == 200
        await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 5}, {"traceparent": "nonsense"})
        # Pending data is sent at the end.
        await stop(process)
        spans = await found.has(4)
        assert len(spans) == 4
        for span in spans:
            assert sum(span.stages.values()) == pytest.approx(span.seconds, abs=1e-6)
            assert span.resource["service.name"] == "llmserve"
            assert span.began <= min(at for _, at in span.events) <= max(at for _, at in span.events) <= span.ended
        assert [span.parent for span in spans if span.trace == TRACE] == [PARENT] * 3
        assert [span.parent for span in spans if span.trace != TRACE] == [""]
        # The data of the last process that sent any.
        assert 1 <= sum(point.as_int for point in found.metrics["llmserve.requests"]) <= 4
        assert "gen_ai.server.request.duration" in found.metrics


async def test_a_raw_socket_passes_a_trace_on(tmp_path):
    module = (*SOCKET, "--listen", "tcp://127.0.0.1:0")
    async with collector() as found, program(tmp_path, *FAST, "--otlp-endpoint", found.url, module=module) as (process, url, _):
        async with SocketClient(url) as client:
            await client.generate(GenerationRequest("hi", sampling=Sampling(max_tokens=3), trace_headers=HEADERS))
        await stop(process)
        (span,) = await found.has(1)
        assert (span.trace, span.parent) == (TRACE, PARENT)


async def test_a_missing_collector_only_loses_its_spans(tmp_path):
    async with program(tmp_path, *FAST, "--otlp-endpoint", "http://127.0.0.1:9") as (process, url, _):
        assert (await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 5}))[0] == 200
        await stop(process)


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://localhost:4317", "http://", "4318"])
def test_a_wrong_endpoint_is_named(url, capsys):
    with pytest.raises(SystemExit):
        read(argparse.ArgumentParser(), ServerSettings, [*SIMULATED, "--otlp-endpoint", url])
    assert repr(url) in capsys.readouterr().err


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": ["00-short-01"]},
        {"traceparent": ["x" * 513]},
        {"traceparent": [HEADERS["traceparent"].replace("a", "ä")]},
        {"tracestate": ["vendor=1"]},
    ],
)
def test_an_invalid_trace_counts_as_not_sent(headers):
    assert trace_of(lambda name: headers.get(name, [])) == {}


def test_a_long_state_is_left_out_and_several_are_one():
    parent = HEADERS["traceparent"]
    assert trace_of_mapping({"traceparent": parent, "tracestate": "x" * 600}) == {"traceparent": parent}
    headers = {"traceparent": [parent], "tracestate": ["a=1", "b=2"]}
    assert trace_of(lambda name: headers.get(name, [])) == {"traceparent": parent, "tracestate": "a=1,b=2"}
