"""The table of engines: a new engine is one class and one row."""

import argparse

import anyio
import pytest

from frontends.aiohttp_app import choose_workers
from frontends.options.command_line import read
from frontends.options.definitions import make
from frontends.program.service import open_service
from frontends.program.settings import ServerSettings
from llmserve import ConfigurationError, EngineManager
from llmserve.engine import EngineInfo, EnginePrompt, EngineStatistics
from llmserve.engines import ENGINES, create_engine
from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.engines.spec import EngineSpec
from llmserve.request import Delta

pytestmark = pytest.mark.anyio


class Echo(EngineSpec):
    """Stands for an engine of another project."""

    def create(self, model, args):
        return SimulatedEngine.from_args(model, args)


async def test_an_engine_is_one_class_and_one_row(monkeypatch):
    monkeypatch.setitem(ENGINES, "echo", Echo())
    async with EngineManager.open("any", engine="echo", engine_args={"max_num_seqs": 3}) as manager:
        assert manager.info.max_num_seqs == 3
        assert (await manager.generate("hi", max_tokens=4)).usage.completion_tokens == 4
    assert choose_workers("echo", {}) == 1


class Stub(EngineSpec):
    """A row that is its own engine: it repeats the prompt, and reports no steps."""

    info = EngineInfo(name="stub", version="1", model="stub", max_model_len=100, vocab_size=256, max_num_seqs=2)

    def create(self, model, args):
        self.args = args
        return self

    async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        task_status.started()
        await anyio.sleep_forever()

    def kill(self):
        pass

    async def tokenize(self, request):
        return EnginePrompt(token_ids=tuple(request.prompt.encode()))

    async def detokenize(self, token_ids):
        return bytes(token_ids).decode()

    def reader(self, request, prompt):
        return None

    async def submit(self, request_id, prompt, sampling, priority, sink):
        tokens = prompt.token_ids[: sampling.max_tokens]
        sink.put(Delta(bytes(tokens).decode(), tokens, finish_reason="stop"))

    async def abort(self, request_id):
        pass

    def statistics(self):
        return EngineStatistics()

    def watch(self, stepped):
        pass

    async def suspects(self, step_seconds):
        return []

    def check_health(self):
        pass


async def test_a_third_engine_serves_by_its_name(monkeypatch):
    monkeypatch.setitem(ENGINES, "stub", Stub())
    async with EngineManager.open("any", engine="stub") as manager:
        assert (await manager.generate("hello")).text == "hello"
        assert manager.info.name == "stub"


async def test_a_server_of_a_third_engine_is_made_of_its_command_line(monkeypatch):
    stub = Stub()
    monkeypatch.setitem(ENGINES, "stub", stub)
    arguments = ["--engine", "stub", "--engine-arg", "depth=3", "--policy", "fixed", "--max-running", "1"]
    settings = make(ServerSettings, read(argparse.ArgumentParser(), ServerSettings, arguments))
    async with open_service(settings, settings.open_access()) as service, service.manager as manager:
        assert (await manager.generate("hello", max_tokens=2)).text == "he"
        assert manager.statistics().admission.limit == 1
        assert stub.args == {"depth": 3}
    assert choose_workers("stub", {}) == 1


def test_an_engine_that_is_not_in_the_table_is_refused_with_those_that_are():
    with pytest.raises(ConfigurationError, match=r"unknown engine .echo.*vllm, simulated"):
        create_engine("echo", "any", {})


@pytest.mark.parametrize(
    ("verbose", "endpoint", "expected"),
    [
        (False, None, {"use_tqdm_on_load": False}),
        (True, "http://collector/v1/traces", {"otlp_traces_endpoint": "http://collector/v1/traces"}),
    ],
)
def test_a_server_makes_vllm_quiet_and_traces_it(verbose, endpoint, expected):
    assert ENGINES["vllm"].server_args(verbose=verbose, trace_endpoint=endpoint) == expected
    assert ENGINES["simulated"].server_args(verbose=verbose, trace_endpoint=endpoint) == {}
