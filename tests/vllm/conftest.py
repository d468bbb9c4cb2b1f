"""One real engine on the bundled model for all these tests: a start takes half a minute."""

import threading

import psutil
import pytest
from http_support import running_server

from llmserve import AdmissionConfig, ManagerConfig
from llmserve.engines.vllm.engine import VLLMEngine


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/vllm/" in item.path.as_posix():
            item.add_marker(pytest.mark.vllm)
            # A start takes half a minute on two quiet cores, and minutes beside other programs.
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))
            # vLLM and its dependencies cause warnings about each other.
            item.add_marker(pytest.mark.filterwarnings("default"))


class CoreCounter(threading.Thread):
    """Counts the engine cores of vLLM that this process and its children start."""

    TITLE = "VLLM::EngineCore"
    # A core lives for seconds before it can end.
    LOOK_SECONDS = 0.5

    def __init__(self):
        super().__init__(daemon=True)
        self.seen = set()
        self._done = threading.Event()

    def run(self):
        me = psutil.Process()
        while not self._done.wait(self.LOOK_SECONDS):
            for child in me.children(recursive=True):
                try:
                    if " ".join(child.cmdline()).startswith(self.TITLE):
                        self.seen.add((child.pid, child.create_time()))
                except psutil.Error:
                    continue

    def stop(self):
        self._done.set()
        self.join()


# A start takes 20 to 40 s, and the tests that everyone runs should take minutes. Those of `nightly` are not counted.
MAX_STARTS = 11


@pytest.fixture(scope="session", autouse=True)
def started_cores(request):
    counter = CoreCounter()
    counter.start()
    yield counter.seen
    counter.stop()
    # At least the shared one, or it counts nothing.
    if "not nightly" in request.config.option.markexpr and len(request.session.items) > 100:
        assert 1 <= len(counter.seen) <= MAX_STARTS, f"{len(counter.seen)} engine cores were started"


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
