"""Gives up starts of real engines at random moments, and closes engines.

Usage: `starts.py SEED KIND COUNT...`.

It prints a line of JSON for each. The kinds are "timeout" and "cancel" (of entering the manager),
"stop" (the core is stopped; RestartConfig's start_timeout) and "close" (orderly, after an answer).
The first start of a process imports vLLM. The program runs in its own process, because it searches
the whole process for what an engine leaves behind.
"""

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from llmserve import EngineDead, EngineManager, ManagerConfig, RestartConfig, Sampling
from llmserve.engines.processes.shared_memory import KINDS

# Range of the seconds after which a start is given up: from before the import of vLLM until after a
# core has loaded its model.
EARLIEST, LATEST = 0.3, 20.0
# These are not ours: Inductor's cache, and the rendezvous file of a worker that was killed early,
# some hundred bytes.
NOT_OURS = ("torchinductor", "vllm_dist_")


def left():
    """Return everything that a process could leave behind in the system, and in itself."""
    me = psutil.Process()
    others = [child for child in me.children(recursive=True) if "resource_tracker" not in " ".join(command_of(child))]
    return {
        "processes": len(others),
        "segments": sorted(
            file.name for file in Path("/dev/shm").iterdir() if file.name.startswith(tuple(KINDS)) and file.stat().st_ctime > BEGAN
        ),
        "files": sorted(name for name in os.listdir(tempfile.gettempdir()) if not name.startswith(NOT_OURS)),
        "descriptors": me.num_fds(),
        "threads": me.num_threads(),
    }


def command_of(process):
    try:
        return process.cmdline()
    except psutil.ZombieProcess:
        return ["zombie"]
    except psutil.NoSuchProcess:
        return ["resource_tracker"]


def cores():
    """Return the ids of the cores; the process objects would hold descriptors."""
    return {child.pid for child in multiprocessing.active_children() if child.name.startswith("EngineCore")}


async def stop_the_core(after):
    """Stop the core some seconds after its start."""
    while not (found := cores()):
        await asyncio.sleep(0.01)
    await asyncio.sleep(after)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


async def give_up(kind, at):
    """Return how a start ended, and its delay in seconds."""
    timeout = at if kind == "stop" else 600.0
    manager = EngineManager.open("bundled", config=ManagerConfig(restart=RestartConfig(start_timeout=timeout)))
    began = time.monotonic()
    stopping = asyncio.create_task(stop_the_core(random.uniform(0, 3))) if kind == "stop" else None
    try:
        if kind == "timeout":
            async with asyncio.timeout(at):
                await manager.__aenter__()
        elif kind == "cancel":
            entering = asyncio.create_task(manager.__aenter__())
            asyncio.get_running_loop().call_later(at, entering.cancel)
            await entering
        else:
            await manager.__aenter__()
    except (TimeoutError, asyncio.CancelledError, EngineDead) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - began - at
    finally:
        if stopping is not None:
            stopping.cancel()
            with suppress(asyncio.CancelledError):
                await stopping
    await manager.__aexit__(None, None, None)
    return "up", 0.0


async def close():
    async with EngineManager.open("bundled") as manager:
        await manager.generate("hi", sampling=Sampling(max_tokens=2))
        began = time.monotonic()
    return "closed", time.monotonic() - began


async def main(seed, kinds):
    random.seed(seed)
    for kind, count in kinds:
        for _ in range(count):
            at = random.uniform(EARLIEST, LATEST)
            how, late = await (close() if kind == "close" else give_up(kind, at))
            sys.stdout.write(json.dumps({"kind": kind, "at": round(at, 1), "how": how, "late": round(late, 2), **left()}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    BEGAN = time.time()
    words = sys.argv[2:]
    asyncio.run(main(int(sys.argv[1]), list(zip(words[::2], map(int, words[1::2]), strict=True))))
