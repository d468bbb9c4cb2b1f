"""Engines of several processes: two cores behind one AsyncLLM, and one core with several workers."""

from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from llmserve import EngineDead, EngineManager, EngineRestarted, GenerationRequest, ManagerConfig, RestartConfig, Sampling
from llmserve.engines.processes.shared_memory import made_by

pytestmark = pytest.mark.nightly

SLOTS = 3


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


async def test_three_workers_of_a_core_answer_and_leave_nothing_when_one_is_killed():
    """The bundled model's attention has three groups of heads."""
    args = {"tensor_parallel_size": 3, "max_num_seqs": SLOTS, "max_model_len": 2048}
    question = GenerationRequest("The capital of France is", sampling=Sampling(max_tokens=8, temperature=0))
    manager: Any
    async with EngineManager.open("bundled", engine_args=args) as manager:
        assert "Paris" in (await manager.generate(question)).text
        (core,) = manager.engine.processes()
        workers = psutil.Process(core).children(recursive=True)
        assert len(workers) == 3
        made = made_by(workers[0].pid)
        assert any(name.startswith("vllm_dist_") for name in made)
        async with manager.stream(GenerationRequest("x", sampling=Sampling(max_tokens=1500, ignore_eos=True))) as stream:
            workers[1].kill()
            with pytest.raises(EngineRestarted):
                await stream.collect()
        # This waits for the next engine.
        assert "Paris" in (await manager.generate(question)).text
        assert not any(Path("/dev/shm", name).exists() for name in made)
        made = made_by(psutil.Process(manager.engine.processes()[0]).children(recursive=True)[0].pid)
    assert not any(Path("/dev/shm", name).exists() for name in made)
