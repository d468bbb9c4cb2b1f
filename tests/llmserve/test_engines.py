"""The table of engines: a new engine is one class and one row."""

import pytest

from frontends.aiohttp_app import choose_workers
from llmserve import ConfigurationError, EngineManager
from llmserve.engines import ENGINES, create_engine
from llmserve.engines.simulated.engine import SimulatedEngine
from llmserve.engines.spec import EngineSpec

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
