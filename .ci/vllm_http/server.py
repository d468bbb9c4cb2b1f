"""Replaces vLLM's `tests/utils.py`: its tests start an application of ours (see `run.py`)."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Self

import openai
import pytest

VLLM_PATH = pathlib.Path(__file__).parent.parent
ROCM_EXTRA_ARGS: list[str] = []
ROCM_ENV_OVERRIDES: dict[str, str] = {}
# Models of the tests that make vectors, and the kind of ours that replaces each (`host.py`). All
# others generate.
VECTORS = {
    "intfloat/multilingual-e5-small": "embedding",
    "BAAI/bge-base-en-v1.5": "embedding",
    "BAAI/bge-reranker-base": "reranker",
    "jason9693/Qwen2.5-1.5B-apeach": "classifier",
}


class Host:
    """The process that has the engine; it starts with the first server of a test."""

    process: subprocess.Popen[str] | None = None
    asked = 0

    @classmethod
    def open(cls, name: str, root_path: str = "", key: str | None = None, *, kind: str = "chat", **extras: bool) -> int:
        """Return the port of an application with an engine of a kind; clients need `key`.

        The applications of another kind end. `extras` are those of answers, by name.
        """
        if cls.process is None:
            command = [sys.executable, os.environ["LLMSERVE_TESTS_HOST"]]
            cls.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert cls.process.stdin is not None
        assert cls.process.stdout is not None
        cls.asked += 1
        print(
            json.dumps({"number": cls.asked, "name": name, "root_path": root_path, "key": key, "kind": kind, "extras": extras}),
            file=cls.process.stdin,
            flush=True,
        )
        # A test that was given up during an engine's start has left its answer unread.
        while (answer := cls.process.stdout.readline().split())[0] != str(cls.asked):
            pass
        return int(answer[1])

    @classmethod
    def close(cls) -> None:
        if cls.process is not None:
            cls.process.communicate()


class RemoteOpenAIServer:
    """Uses only the served name, the root path, the metrics and the environment's key of vLLM's arguments."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(self, model: str, vllm_serve_args: list[str], env_dict: dict[str, str] | None = None, **_: Any) -> None:
        def after(flag: str, default: str) -> str:
            return vllm_serve_args[vllm_serve_args.index(flag) + 1] if flag in vllm_serve_args else default

        name, key = after("--served-model-name", model), (env_dict or {}).get("VLLM_API_KEY")
        kind = "adapters" if "--enable-lora" in vllm_serve_args else VECTORS.get(model, "chat")
        flags = {"metrics": "--enable-per-request-metrics", "usage": "--enable-force-include-usage"}
        extras = {extra: flag in vllm_serve_args for extra, flag in flags.items()}
        port = Host.open(name, after("--root-path", ""), key, kind=kind, **extras)
        self.host, self.port = "127.0.0.1", port
        self.uds = None
        self.show_hidden_metrics = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def url_root(self) -> str:
        return f"http://{self.host}:{self.port}"

    def url_for(self, *parts: str) -> str:
        return "/".join((self.url_root, *(part.strip("/") for part in parts)))

    def get_client(self, **kwargs: Any) -> openai.OpenAI:
        return openai.OpenAI(**self._connection(kwargs))

    def get_async_client(self, **kwargs: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._connection(kwargs))

    def get_client_anthropic(self, **kwargs: Any) -> Any:
        import anthropic

        return anthropic.Anthropic(**self._connection(kwargs) | {"base_url": self.url_root})

    def get_async_client_anthropic(self, **kwargs: Any) -> Any:
        import anthropic

        return anthropic.AsyncAnthropic(**self._connection(kwargs) | {"base_url": self.url_root})

    def _connection(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.url_for("v1"), "api_key": self.DUMMY_API_KEY, "max_retries": 0, "timeout": 600} | kwargs


def multi_gpu_only(*, num_gpus: int = 2) -> Any:
    return pytest.mark.skip(reason=f"needs {num_gpus} GPUs")


requires_fp8 = pytest.mark.skip(reason="needs a GPU")
