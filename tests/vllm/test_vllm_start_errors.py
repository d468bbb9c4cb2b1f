"""Starts that fail in the engine's processes: the exception, and the last line, has the cause."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmserve import ConfigurationError
from llmserve.engines.vllm.args import build_engine_args
from llmserve.engines.vllm.rendering import texts
from llmserve.engines.vllm.shared_core import start_errors
from llmserve.models import resolve

PROGRAM = """
import asyncio
import sys
from llmserve import EngineManager

async def main():
    async with EngineManager.open(sys.argv[1]):
        pass

"""


def last_line(tmp_path, start, model):
    (tmp_path / "program.py").write_text(PROGRAM + start)
    command = [sys.executable, str(tmp_path / "program.py"), model]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=600, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.nightly
def test_the_process_that_imports_a_program_without_a_guard_says_so_to_the_program(tmp_path):
    last = last_line(tmp_path, "asyncio.run(main())", "bundled")
    assert last.startswith("llmserve.errors.ConfigurationError: the program starts the engine vllm again when an engine's process imports")
    assert last.endswith('put the start under `if __name__ == "__main__":`')


@pytest.mark.nightly
def test_a_worker_s_error_is_reported_instead_of_its_core_s(tmp_path):
    """The weights have 30 layers, and the config says 31; each file is intact."""
    whole, folder = Path(resolve("bundled")), tmp_path / "model"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 31}))
    last = last_line(tmp_path, 'if __name__ == "__main__":\n    asyncio.run(main())', str(folder))
    assert last.startswith(f"llmserve.errors.ConfigurationError: vLLM cannot start with model {str(folder)!r}: Following weights were not")
    assert "model.layers.30." in last


def refusal(*arguments, **environ):
    """Return the only line of a server that fails within a second, before importing vLLM."""
    command = [sys.executable, "-m", "frontends.aiohttp_app", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_server_without_a_cache_folder_says_so_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    line = refusal(LLMSERVE_CACHE=str(tmp_path / "file" / "cache"))
    assert (
        f"the cache folder {tmp_path}/file/cache cannot be written: Not a directory; set LLMSERVE_CACHE to a folder that can be written"
        in line
    )


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub for a missing model and a missing revision."""

    def do_GET(self):
        code = "RevisionNotFound" if "/revision/" in self.path else "RepoNotFound"
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_model_that_the_hub_has_not_is_one_line(tmp_path):
    environ = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
        assert f"models/name is not a model folder, and {environ['HF_ENDPOINT']} has no such model" in refusal(
            "--model", "models/name", **environ
        )
        line = refusal("--model", "models/name", "--engine-arg", "revision=old", **environ)
        assert "the model models/name has no revision 'old'" in line
        hub.shutdown()
    # No process listens on this port any more.
    assert "models/name is not a model folder, is not in" in refusal("--model", "models/name", **environ)
    assert "offline" in refusal("--model", "models/name", **{**environ, "HF_HUB_OFFLINE": "1"})
    assert "Repo id must" in refusal("--model", "models/na me", **environ)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpu_memory_utilization": 3}, "gpu_memory_utilization: Input should be less than or equal to 1"),
        ({"max_model_len": 999_999}, "User-specified max_model_len (999999) is greater than"),
        ({"structured_outputs_config": {"backend": 3}}, "backend: Input should be 'auto', 'xgrammar'"),
    ],
)
def test_a_wrong_engine_argument_is_named_in_one_line(arguments, words):
    with pytest.raises(ConfigurationError) as caught, start_errors("bundled"):
        build_engine_args(resolve("bundled"), arguments).create_engine_config()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "bert"])
def test_a_folder_without_a_tokenizer_is_named(tmp_path, kind):
    """A regression: the engine started, and refused each text, or read each as unknown tokens."""
    from transformers import AutoTokenizer

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigurationError) as caught:
        texts(AutoTokenizer.from_pretrained(tmp_path), "folder")
    assert str(caught.value) == (
        "the tokenizer of folder knows no text: "
        "copy its files (such as tokenizer.json) into that folder, or set the engine argument 'tokenizer'"
    )
    whole = AutoTokenizer.from_pretrained(resolve("bundled"))
    assert len(texts(whole, "bundled")) == len(whole)
