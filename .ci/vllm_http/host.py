"""Start an application per JSON object on standard input, and print its port.

The applications serve the bundled models, and classifiers with random weights.

See `run.py`.
"""

import json
import os
import pathlib
import sys
import tempfile
from contextlib import AsyncExitStack
from typing import TextIO

import anyio
import anyio.to_thread

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.answers.generation import Extras
from frontends.http.app import build_app
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from llmserve import EngineManager, ManagerConfig
from llmserve.engines.vllm.engine import VLLMEngine

sys.path.append(str(pathlib.Path(__file__).parent.parent.parent / "tests"))
from vllm_adapter_files import write_adapter
from vllm_classifier_files import write_classifier

# The classes of the models that score, by the kind of the engine.
LABELS = {"reranker": ("LABEL_0",), "classifier": ("Default", "Spoiled")}
ADAPTERS = ("zephyr-lora", "qwen3-lora", "Alice", "Bob")
# The context with which most of the tests start vLLM.
CONTEXT = 8192
VECTOR_CONTEXT = 100


async def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # vLLM prints to standard output as well.
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        # Adapters without effect replace those that the tests would download.
        modules = {name: write_adapter(pathlib.Path(folder, name), 8, 0.0) for name in ADAPTERS}
        line = await read()
        while line:
            # One engine at a time. An engine with adapters refuses logprobs of prompts, so only the
            # tests of adapters have one.
            kind = json.loads(line)["kind"]
            if kind == "embedding":
                engine = VLLMEngine("bundled-embedding", {"max_model_len": VECTOR_CONTEXT})
            elif kind in LABELS:
                written = write_classifier(pathlib.Path(tempfile.mkdtemp(dir=folder)), LABELS[kind])
                engine = VLLMEngine(str(written), {"max_model_len": VECTOR_CONTEXT})
            else:
                adapters = {"lora_modules": modules} if kind == "adapters" else {}
                engine = VLLMEngine("bundled", {"tool_call_parser": "hermes", "max_model_len": CONTEXT, **adapters})
            line = await serve(engine, line, answers)


async def read() -> str:
    return (await anyio.to_thread.run_sync(sys.stdin.readline)).strip()


async def serve(engine: VLLMEngine, line: str, answers: TextIO) -> str:
    """Start applications until one needs another engine; return its line, or an empty one."""
    kind = json.loads(line)["kind"]
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(EngineManager(engine, ManagerConfig(drain_timeout=5)))
        while line and (asked := json.loads(line))["kind"] == kind:
            access = Access(Keys.single(asked["key"])) if asked["key"] else Access()
            app = build_app(manager, asked["name"], access=access, root_path=asked["root_path"], extras=Extras(**asked["extras"]))
            listener = bind("127.0.0.1", 0)
            server = await stack.enter_async_context(running(app))
            await stack.enter_async_context(listen(server, listener))
            print(asked["number"], listener.getsockname()[1], file=answers, flush=True)
            line = await read()
    return line


if __name__ == "__main__":
    anyio.run(main)
