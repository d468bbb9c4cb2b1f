"""The unmodified OpenAI client against the simulated engine; tests/vllm has the real engine."""

import openai
import pytest
from contracts.openai_contract import OpenAIContract
from engines import ScriptedEngine
from http_support import running_server

from llmserve import AdmissionConfig, ManagerConfig


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
