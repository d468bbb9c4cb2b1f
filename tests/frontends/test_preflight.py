"""Invalid starts end with one line and exit code 2, before a server listens or imports vLLM."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from program_support import MODULE, SOCKET, fetch, program

PORT = {"aiohttp": [*MODULE, "--port", "0"], "socket": [*SOCKET, "--listen", "tcp://127.0.0.1:0"]}


def refusal(*command, **environ):
    """Return the one line that a server prints."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert ": error: " in line
    return line


@pytest.fixture
def vllm(tmp_path):
    """Return a PYTHONPATH with a vLLM that ends the program when it is imported."""
    package = tmp_path / "path" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os; os.write(2, b'vllm was imported'); os._exit(3)")
    return os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 7)
    return folder


@pytest.mark.parametrize("server", PORT)
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["one", "workers"])
def test_a_wrong_model_is_one_line(server, workers, vllm, model):
    command = [*PORT[server], *(workers if server == "aiohttp" else [])]
    assert "the model folder /no/such does not exist" in refusal(*command, "--model", "/no/such", PYTHONPATH=vllm)
    assert "the weights" in refusal(*command, "--model", str(model), PYTHONPATH=vllm)
    (model / "config.json").write_text("{")
    line = refusal(*command, "--model", str(model), "--engine-arg", "load_format=dummy", PYTHONPATH=vllm)
    assert "config.json is not JSON" in line


@pytest.mark.parametrize("server", PORT)
def test_ctrl_c_during_the_checks_ends_the_program_without_a_traceback(server, vllm, tmp_path):
    # The signal arrives during the request to the hub.
    (tmp_path / "path" / "huggingface_hub.py").write_text("raise KeyboardInterrupt")
    command = [*PORT[server], "--model", "org/name"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": vllm}, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("server", PORT)
@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
@pytest.mark.parametrize("value", ["/no/such/folder", "/dev/null", "/proc"])
def test_an_unwritable_folder_of_prometheus_client_is_one_line(server, name, value):
    line = refusal(*PORT[server], "--engine", "simulated", **{name: value})
    assert f"{name}={value} cannot be written: " in line
    assert line.endswith("correct it or unset it")


def test_a_folder_of_prometheus_client_on_a_full_disk_is_one_line(tmp_path):
    """A file can be created but not written; a file size limit simulates a full disk."""
    with_little_room = (
        sys.executable, "-c",
        f"import os, resource, sys; resource.setrlimit({resource.RLIMIT_FSIZE}, (2**20, 2**20)); os.execv(sys.executable, sys.argv[1:])",
    )  # fmt: skip
    line = refusal(*with_little_room, *PORT["aiohttp"], "--engine", "simulated", PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert f"PROMETHEUS_MULTIPROC_DIR={tmp_path} cannot be written: File too large; correct it or unset it" in line
    assert not list(tmp_path.iterdir())


async def test_a_cache_that_cannot_be_written_does_not_stop_an_engine_that_stores_nothing_there():
    async with program(Path("/dev/null/cache")) as (process, url, lines):
        assert (await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 1}))[0] == 200
        process.terminate()
        assert await process.wait() == 0
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "workers"), [("PROMETHEUS_MULTIPROC_DIR", "1"), ("prometheus_multiproc_dir", "1"), ("PROMETHEUS_MULTIPROC_DIR", "2")]
)
async def test_an_empty_folder_of_prometheus_client_is_ignored(name, workers, tmp_path, monkeypatch):
    """With an empty name, prometheus_client would use the working directory and fail at scrapes."""
    monkeypatch.setenv(name, "")
    monkeypatch.chdir(tmp_path)
    async with program(tmp_path / "cache", "--workers", workers) as (_, url, _):
        status, text = await fetch(f"{url}/metrics", headers={"Accept": "text/plain"})
        assert status == 200
        assert b"llmserve_" in text
        assert b"process_cpu_seconds_total" in text
    assert not list(tmp_path.glob("*.db"))


def test_a_key_that_cannot_be_printed_is_said_to_be_lost(tmp_path):
    command = [*MODULE, "keys", "add", str(tmp_path / "keys.toml"), "alice"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "standard output cannot be written: No space left on device; the key is lost: delete the table of 'alice'" in line


def test_no_key_is_made_where_standard_output_is_closed(tmp_path):
    keys = tmp_path / "keys.toml"
    command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, *MODULE[1:], "keys", "add", str(keys), "alice"]
    assert "standard output is closed, and this command prints to it" in refusal(*command)
    assert not keys.exists()
