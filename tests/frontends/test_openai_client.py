"""The unmodified OpenAI client against the simulated engine; tests/vllm has the real engine."""

from functools import partial
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from contracts.openai_contract import OpenAIContract
from engines import ScriptedEngine
from http_support import running_server

from frontends.http.errors import last_event
from llmserve import AdmissionConfig, EngineRestarted, ManagerConfig


class TestOpenAI(OpenAIContract):
    """The whole contract on the simulated engine."""


async def test_refusals_are_the_client_s_own_exceptions():
    config = ManagerConfig(admission=AdmissionConfig(max_running=2, max_waiting=0, tenant_limit=1), drain_timeout=1)
    async with running_server(ScriptedEngine(), config) as server:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            held = [await client.completions.create(model="sim", prompt="x", user=user, stream=True) for user in ("a", "b")]
            with pytest.raises(openai.RateLimitError) as limited:
                await client.completions.create(model="sim", prompt="x", user="a")
            assert int(limited.value.response.headers["retry-after"]) >= 1
            with pytest.raises(openai.InternalServerError) as full:
                await client.completions.create(model="sim", prompt="x", user="c")
            assert full.value.status_code == 503
            assert "retry-after" in full.value.response.headers
            for stream in held:
                await stream.close()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
async def test_a_stream_that_a_replica_s_death_ends_raises_the_client_s_own_exception(path):
    async def respond(request):
        return web.Response(body=last_event(EngineRestarted("the replica died"), path), content_type="text/event-stream")

    app = web.Application()
    app.router.add_post(path, respond)
    async with TestServer(app) as server, openai.AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key="none") as client:
        ask: dict[str, Any] = {
            "/v1/responses": partial(client.responses.create, input="x"),
            "/v1/completions": partial(client.completions.create, prompt="x"),
        }
        stream = await ask[path](model="sim", stream=True)
        with pytest.raises(openai.APIError, match="the replica died"):
            async for _ in stream:
                pass


def test_no_event_of_the_responses_api_has_another_s_end():
    assert last_event(EngineRestarted("the replica died"), "/v1/responses").startswith(b'event: error\ndata: {"error":')
