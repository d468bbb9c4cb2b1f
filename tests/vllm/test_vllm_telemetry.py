"""Traces through the real engine: vLLM's own span of a request is a child of ours."""

import signal

import anyio
import pytest
from otlp_support import collector
from program_support import fetch, program

pytestmark = pytest.mark.nightly

HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


async def test_the_engine_s_span_is_a_part_of_the_request_s(tmp_path):
    async with (
        collector() as found,
        program(None, "--workers", "1", "--otlp-endpoint", found.url, engine=("--model", "bundled")) as (process, url, _),
    ):
        body = {"prompt": "The capital of France is", "max_tokens": 8}
        assert (await fetch(f"{url}/v1/completions", body, HEADERS))[0] == 200
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(60):
            assert await process.wait() == 0
        (ours,) = await found.has(1)
        (theirs,) = [span for span in found.spans if span.name == "llm_request"]
        assert (ours.trace, ours.parent) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
        assert (theirs.trace, theirs.parent) == (ours.trace, ours.id)
        assert sum(ours.stages.values()) == pytest.approx(ours.seconds, abs=1e-6)
        # The engine reports when it scheduled the request, and that time is within our span.
        assert ours.stages["engine_queue"] >= 0
        assert theirs.attributes["gen_ai.latency.time_in_model_decode"] <= ours.seconds
