"""SIGHUP and logrotate: files are reread, a renamed log is reopened, and no stream is cut."""

import asyncio
import fcntl
import json
import os
import pty
import signal
import termios

import aiohttp
import anyio
import pytest
from program_support import MODULE, SIMULATED, fetch, program

from frontends.access.api_keys import add_key
from frontends.logs.log_writer import LogWriter, open_appending

pytestmark = pytest.mark.anyio
BODY = {"prompt": "hi", "max_tokens": 2}


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def said(process, words):
    with anyio.fail_after(20):
        while words not in (line := (await process.stderr.readline()).decode()):
            assert line
    return line


async def answer(url, tokens, key, begun):
    body = {"prompt": "hi", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(url) as session:
        async with session.post("/generate", json=body, headers={"Authorization": f"Bearer {key}"}) as response:
            await response.content.readline()
            begun.set()
            return (await response.text()).count('"text"')


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sighup_reads_the_files_again_and_cuts_no_stream(tmp_path, workers):
    path = tmp_path / "keys.toml"
    key = add_key(path, "a", {})
    options = ("--api-keys", str(path), "--workers", workers, "--engine-arg", "step_seconds=0.02")
    async with program(tmp_path, *options) as (process, url, _):
        begun = asyncio.Event()
        reading = asyncio.create_task(answer(url, 50, key, begun))
        await begun.wait()
        process.send_signal(signal.SIGHUP)
        assert str(path) in await said(process, "access    reloaded")
        assert await reading > 1
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            assert await process.wait() == 0


async def test_the_end_of_its_terminal_drains_the_server(tmp_path):
    master, terminal = pty.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        # The tests may run under nohup.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    command = [*MODULE, *SIMULATED, "--port", "0"]
    environment = {**os.environ, "LLMSERVE_CACHE": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment, preexec_fn=take_terminal)
    os.close(terminal)
    await said(process, "  ready  ")
    # The terminal exists, so an operator has sent the signal.
    process.send_signal(signal.SIGHUP)
    await said(process, "reload  ")
    os.close(master)
    await said(process, "draining")
    with anyio.fail_after(20):
        assert await process.wait() == 0
    process._transport.close()  # type: ignore[attr-defined]  # asyncio has no public way


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_request_log_that_is_renamed_is_opened_again(tmp_path, workers):
    log, old = tmp_path / "requests.jsonl", tmp_path / "requests.jsonl.1"

    def names(path):
        return [json.loads(line)["request"] for line in path.read_text().splitlines()]

    async def ask(name, path):
        """Wait for a request's line: workers notice a renamed log within a second."""
        number = 0
        with anyio.fail_after(20):
            while f"{name}-{number}" not in (names(path) if path.exists() else []):
                number += 1
                assert (await fetch(f"{url}/health/live", headers={"X-Request-Id": f"{name}-{number}"}))[0] == 200
                await anyio.sleep(0.2)

    async with program(tmp_path, "--request-log", str(log), "--log-probes", "--workers", workers) as (process, url, _):
        await ask("before", log)
        log.rename(old)
        await ask("after", log)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            assert await process.wait() == 0
    assert log.stat().st_mode & 0o777 == 0o600
    # No line is lost, and no line is in both files.
    found = names(old) + names(log)
    assert len(found) == len(set(found))
    for name in ("before", "after"):
        numbers = sorted(int(one.split("-")[1]) for one in found if one.startswith(name))
        assert numbers == list(range(1, len(numbers) + 1))


async def test_an_idle_log_closes_a_renamed_file(tmp_path):
    path, moved = tmp_path / "log", tmp_path / "log.1"
    reports = []
    log = LogWriter("requests", open_appending(path), reports.append, path)
    log(b"one\n")
    with anyio.fail_after(10):
        while not path.stat().st_size:
            await anyio.sleep(0.02)
        path.rename(moved)
        while not path.exists():
            await anyio.sleep(0.02)
    log(b"two\n")
    assert log.close()
    assert moved.read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"
    assert not reports
