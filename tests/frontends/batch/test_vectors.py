"""Lines that ask for vectors, behind other requests like those that generate."""

import json

import pytest

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.access.caller import Caller
from frontends.answers.served_model import ServedModel
from frontends.answers.vectors import Vectors
from frontends.batch.answers import LAST, Answers
from frontends.batch.room import SHARE
from llmserve import EngineManager, InvalidRequest
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine

BODIES = {
    "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "base64"},
    "/pooling": {"input": "a", "task": "embed"},
    "/classify": {"input": "a"},
    "/score": {"queries": "a", "documents": ["a", "b"]},
    "/rerank": {"query": "a", "documents": ["a", "b"]},
}


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.mark.parametrize("path", BODIES)
async def test_each_route_for_vectors_answers_a_line(path):
    engine = SimulatedEngine(SimulatedConfig(tasks=("classify",) if path == "/classify" else ("embed",)), model="sim")
    priorities = []
    submit = engine.submit

    async def watched(name, prompt, sampling, priority, sink):
        priorities.append(priority)
        await submit(name, prompt, sampling, priority, sink)

    engine.submit = watched
    async with EngineManager(engine) as manager:
        name, answer = await Answers(ServedModel(manager, "sim"))(path, json.dumps(BODIES[path]).encode(), Caller())
        assert json.loads(answer)["id"] == name
        assert set(priorities) == {LAST}
        with pytest.raises(InvalidRequest):
            await Answers(ServedModel(manager, "sim"))(path, b'{"model": "sim"}', Caller())


def test_a_line_may_ask_for_every_vector():
    assert {path for path in Vectors.kinds if path.count("/") == 1} | {"/v1/embeddings"} == BODIES.keys()


async def test_the_inputs_of_a_line_do_not_all_run_at_once():
    engine = SimulatedEngine(SimulatedConfig(), model="sim")
    async with EngineManager(engine) as manager:
        most = 0
        submit = engine.submit

        async def watched(*arguments):
            nonlocal most
            most = max(most, manager.statistics().open)
            await submit(*arguments)

        engine.submit = watched
        await Answers(ServedModel(manager, "sim"))("/v1/embeddings", json.dumps({"input": ["a"] * 50}).encode(), Caller())
        assert most == engine.info.max_num_seqs // SHARE
