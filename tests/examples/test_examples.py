"""The programs of docs/examples, as their readers run them: each in a process of its own, with none of our settings for pytest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

NOTEBOOK = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
print(nbformat.writes(notebook))
"""

FASTAPI = """
import asyncio, httpx
from fastapi_app import app

async def main():
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            for path, body in [
                ("/answers", {"prompt": "Hello", "max_tokens": 5}),
                ("/streams", {"prompt": "Hello", "max_tokens": 5}),
                ("/answers", {"prompt": "Hello " * 10_000}),
                ("/streams", {"prompt": "Hello " * 10_000}),
            ]:
                response = await client.post(path, json=body)
                print(response.status_code, response.headers["content-type"], response.text)
        manager = app.state.manager
        print(manager.statistics().open, manager.state)
    print(manager.state)

asyncio.run(main())
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs Python in the folder of the examples; what it prints."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(*arguments):
        command = [sys.executable, *arguments]
        ended = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=240, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


def test_fixtures_of_pytest_asyncio(run):
    options = ["-c", "pytest.ini", "-p", "no:cacheprovider", "-p", "no:randomly"]
    assert "3 passed" in run("-m", "pytest", *options, "test_with_pytest_asyncio.py")


def test_a_notebook_starts_it_in_one_cell_and_closes_it_in_another(run):
    cells = [cell for cell in json.loads(run("-c", NOTEBOOK, "notebook.ipynb"))["cells"] if cell["cell_type"] == "code"]
    start, answer, stream, close = ["".join(_texts(cell)) for cell in cells]
    assert "ready" in start
    assert answer == "5 length\n"
    assert stream.strip()
    assert close == "stopped\n"


def _texts(cell):
    for output in cell["outputs"]:
        yield from output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]


def test_a_fastapi_application(run):
    answered, streamed, invalid, refused, before, after = run("-c", FASTAPI).splitlines()
    assert answered.startswith('200 application/json {"request_id":"')
    assert '"completion_tokens":5' in answered
    assert streamed.startswith("200 text/plain")
    for line in (invalid, refused):
        assert line.startswith("400 application/json")
        assert '"field":"prompt"' in line
    assert before == "0 ready"
    assert after == "stopped"
