"""Programs whose engine cannot start, where only its processes learn why: that is the exception, and so the program's last line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.timeout(300)
def test_the_process_that_imports_a_program_without_a_guard_says_so_to_the_program(tmp_path):
    last = last_line(tmp_path, "asyncio.run(main())", "bundled")
    assert last.startswith("llmserve.errors.ConfigurationError: the program starts the engine vllm again when an engine's process imports")
    assert last.endswith('put the start under `if __name__ == "__main__":`')


@pytest.mark.timeout(300)
def test_what_a_worker_fails_with_is_the_error_and_not_that_its_core_failed(tmp_path):
    """Weights for 30 layers, where the config says 31: each file is whole."""
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
