"""Serves the bundled model under each name that a line of standard input has, and answers each with a port (see `run.py`)."""

import os
import pathlib
import sys
import tempfile
from contextlib import AsyncExitStack
from typing import TextIO

import anyio
import anyio.to_thread

from frontends.aiohttp_app import build_app
from frontends.http.server import running
from frontends.listeners import bind
from frontends.reception import listen
from llmserve import EngineManager, ManagerConfig
from llmserve.engines.vllm import VLLMEngine

sys.path.append(str(pathlib.Path(__file__).parent.parent.parent / "tests"))
from vllm_adapter_files import write_adapter

ADAPTERS = ("zephyr-lora",)


async def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # vLLM prints to standard output as well.
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        # An adapter that changes nothing takes the place of those that the tests would download.
        modules = {name: write_adapter(pathlib.Path(folder, name), 8, 0.0) for name in ADAPTERS}
        await serve(VLLMEngine("bundled", {"tool_call_parser": "hermes", "lora_modules": modules}), answers)


async def serve(engine: VLLMEngine, answers: TextIO) -> None:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(EngineManager(engine, ManagerConfig(drain_timeout=5)))
        while name := (await anyio.to_thread.run_sync(sys.stdin.readline)).strip():
            listener = bind("127.0.0.1", 0)
            server = await stack.enter_async_context(running(build_app(manager, name)))
            await stack.enter_async_context(listen(server, listener))
            print(listener.getsockname()[1], file=answers, flush=True)


if __name__ == "__main__":
    anyio.run(main)
