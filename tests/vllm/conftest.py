"""One real engine for all of these tests, on the bundled model: starting it takes half a minute."""

import pytest
from http_support import running_server

from llmserve import AdmissionConfig, ManagerConfig
from llmserve.engines.vllm.engine import VLLMEngine


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/vllm/" in item.path.as_posix():
            item.add_marker(pytest.mark.vllm)
            # vLLM and what it imports warn about each other.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
async def server():
    config = ManagerConfig(admission=AdmissionConfig(max_waiting=100), drain_timeout=5)
    async with running_server(VLLMEngine("bundled", {"tool_call_parser": "hermes"}), config) as server:
        yield server


@pytest.fixture
def manager(server):
    return server.manager


@pytest.fixture
def engine(manager):
    return manager.engine
