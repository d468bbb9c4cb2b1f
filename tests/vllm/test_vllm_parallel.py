"""Engines of several processes: two cores behind one AsyncLLM, and one core with several workers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import attrs
import psutil
import pytest

from llmserve import EngineDead, EngineManager, EngineRestarted, GenerationRequest, ManagerConfig, RestartConfig, Sampling
from llmserve.engines.processes.shared_memory import made_by
from llmserve.models import resolve

pytestmark = pytest.mark.nightly

SLOTS = 3
# Seconds that a start may take on a busy machine.
PATIENCE = 300


async def test_two_cores_have_the_room_of_two_and_die_as_one():
    args = {"data_parallel_size": 2, "max_num_seqs": SLOTS, "max_model_len": 2048}
    config = ManagerConfig(restart=RestartConfig(most=0))
    manager: Any
    async with EngineManager.open("bundled", engine_args=args, config=config) as manager:
        assert manager.info.max_num_seqs == 2 * SLOTS
        # vLLM reports the size of each core.
        cache = manager.engine.running_llm.vllm_config.cache_config
        assert manager.info.kv_cache_tokens == 2 * cache.kv_cache_size_tokens
        cores = [psutil.Process(pid) for pid in manager.engine.processes()]
        assert len(cores) == 2
        ended = []

        async def read(number):
            request = GenerationRequest("x", request_id=str(number), sampling=Sampling(max_tokens=1500, ignore_eos=True))
            # This includes the requests of the other core, which vLLM stops, and which aborts them
            # before it ends.
            with pytest.raises(EngineDead):
                await manager.generate(request)
            ended.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(2 * SLOTS):
                tasks.start_soon(read, number)
            # All requests run, which one core alone could not do.
            with anyio.fail_after(30):
                while manager.statistics().engine.running < 2 * SLOTS:
                    await anyio.sleep(0.05)
            assert manager.statistics().engine.waiting == 0
            cores[1].kill()
        assert len(ended) == 2 * SLOTS
    assert not any(core.is_running() and core.status() != psutil.STATUS_ZOMBIE for core in cores)


@pytest.fixture
def halved(tmp_path):
    """A small model with random weights and the bundled model's tokenizer. Its heads fit two workers, the bundled one's only three."""
    whole = Path(resolve("bundled"))
    for file in whole.glob("*token*"):
        shutil.copy(file, tmp_path)
    config = json.loads((whole / "config.json").read_text())
    config |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.timeout(900)
async def test_two_workers_of_a_core_answer_and_leave_nothing_when_one_is_killed(halved, tmp_path, monkeypatch):
    # With an empty cache torch compiles during the first request, and makes a progress bar.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    args = {"tensor_parallel_size": 2, "load_format": "dummy", "max_num_seqs": SLOTS, "max_model_len": 2048}
    question = GenerationRequest("The capital of France is", sampling=Sampling(max_tokens=8, temperature=0, ignore_eos=True))
    manager: Any
    async with EngineManager.open(halved, engine_args=args) as manager:
        answer = (await manager.generate(question)).text
        workers = workers_of(manager)
        assert len(workers) == 2
        made = made_by(workers[0].pid)
        assert any(name.startswith("vllm_dist_") for name in made)
        async with manager.stream(attrs.evolve(question, sampling=Sampling(max_tokens=1900, ignore_eos=True))) as stream:
            await anext(stream)
            workers[1].kill()
            with pytest.raises(EngineRestarted):
                await stream.collect()
        with anyio.fail_after(PATIENCE):
            assert (await manager.generate(question)).text == answer
        assert not made.intersection(os.listdir("/dev/shm"))
        made = made_by(workers_of(manager)[0].pid)
    assert not made.intersection(os.listdir("/dev/shm"))


def workers_of(manager):
    (core,) = manager.engine.processes()
    return [one for one in psutil.Process(core).children() if "Worker" in " ".join(one.cmdline())]
