"""The official OpenAI client through Ray Serve."""

import pytest
from contracts.openai_contract import OpenAIContract


@pytest.fixture(scope="module")
async def server(deploy):
    async with deploy(replicas="2", engine_arg="time_scale=0.1") as cluster:
        yield cluster


class TestOpenAI(OpenAIContract):
    """The whole contract."""
