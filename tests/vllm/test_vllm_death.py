"""The engine's process is killed: everyone is told, and the program that embeds it goes on."""

import os
import signal

import anyio
import psutil
import pytest

from llmserve import EngineDead, EngineManager, GenerationRequest, Sampling, State


async def test_kill_9_of_the_engine_is_told_to_everyone():
    async with EngineManager.open("bundled") as manager:
        async with manager.stream(GenerationRequest("x", sampling=Sampling(max_tokens=2000, ignore_eos=True))) as stream:
            await anext(stream)
            (core,) = manager.engine.running_llm.engine_core.resources.engine_manager.processes
            family = [psutil.Process(core.pid), *psutil.Process(core.pid).children(recursive=True)]
            os.kill(core.pid, signal.SIGKILL)
            with anyio.fail_after(5), pytest.raises(EngineDead):
                async for _ in stream:
                    pass
        with anyio.fail_after(5):
            while manager.state is not State.FAILED:
                await anyio.sleep(0.05)
        with pytest.raises(EngineDead):
            await manager.generate("again")
    with anyio.fail_after(10):
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
            await anyio.sleep(0.1)
