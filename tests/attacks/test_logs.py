"""Logs that cannot be written (unread pipe, closed reader, full disk) only lose lines."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest
from program_support import MODULE, SIMULATED, workers_of

pytestmark = pytest.mark.anyio
# More bytes than the pipe and the queue hold together.
LINES = 6_000


@pytest.fixture
def anyio_backend():
    return "asyncio"


@asynccontextmanager
async def server(tmp_path, *arguments, **streams):
    """Start a server on a unix socket with any output; yield it with a client when it is ready."""
    path = tmp_path / "llmserve.sock"
    environment = {**os.environ, "LLMSERVE_CACHE": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        *MODULE, *SIMULATED, "--unix", str(path), "--log-probes", *arguments, env=environment, **{"stderr": subprocess.DEVNULL, **streams}
    )
    try:
        async with aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(path))) as session:
            with anyio.fail_after(60):
                while not await is_ready(session):
                    assert process.returncode is None
                    await anyio.sleep(0.05)
            yield process, session
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # asyncio has no public way


def read_to_end(descriptor):
    with open(descriptor, "rb") as pipe:
        return pipe.read()


async def is_ready(session):
    try:
        async with session.get("/health/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def ask_often(session, count):
    async def ask():
        nonlocal count
        while count > 0:
            count -= 1
            async with session.get("/health/live") as response:
                assert response.status == 200

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)


async def stream_past_sigterm(process, session, tokens=30):
    """Return the tokens of a stream that is open when the server stops, and the exit code."""
    body = {"prompt": "hi", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    async with session.post("/generate", json=body) as response:
        await response.content.readline()
        process.send_signal(signal.SIGTERM)
        text = (await response.text()).strip()
        assert text.endswith("data: [DONE]")
    with anyio.fail_after(15):
        code = await process.wait()
    return json.loads(text.splitlines()[-3].removeprefix("data: "))["completion_tokens"], code


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_unread_request_log_stops_nothing(tmp_path, workers):
    reading, writing = os.pipe()
    async with server(tmp_path, "--request-log", "-", "--workers", workers, stdout=writing) as (process, session):
        os.close(writing)
        await ask_often(session, LINES)
        async with session.get("/metrics.json") as response:
            dropped = (await response.json())["dropped_lines"]
        assert sum(dropped.values()) > 0
        async with session.get("/metrics", headers={"Accept": "text/plain"}) as response:
            series = re.findall(r'llmserve_log_lines_dropped_total\{log="(\w+)"\} (\d+)', await response.text())
        assert {name for name, _ in series} == {"requests", "stdout", "stderr"}
        assert await stream_past_sigterm(process, session) == (30, 0)
    os.close(reading)


async def test_a_log_that_is_read_again_reports_lost_lines_and_has_only_whole_lines(tmp_path):
    reading, writing = os.pipe()
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr:
        async with server(tmp_path, "--request-log", "-", stdout=writing, stderr=stderr) as (process, session):
            os.close(writing)
            await ask_often(session, LINES)
            process.send_signal(signal.SIGTERM)
            text = await anyio.to_thread.run_sync(read_to_end, reading)
            assert await process.wait() == 0
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.endswith(b"\n")
    assert len({line["request"] for line in lines}) == len(lines)
    lost = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) lines of \w+ were lost", errors.read_text())]
    # The other requests were readiness probes.
    assert len(lines) + sum(lost) >= LINES


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("output", ["full", "closed", "no input", "nobody"])
async def test_output_that_cannot_be_written_cuts_no_stream(tmp_path, output, workers):
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    outputs: dict[str, Any] = {
        "full": {"stdout": full, "stderr": full},
        "nobody": {"stdout": writing, "stderr": writing},
        "closed": {"preexec_fn": lambda: (os.close(1), os.close(2))},
        # As for a daemon. The first file that the program opens would get the descriptor's number.
        "no input": {"preexec_fn": lambda: os.close(0), "stdout": full, "stderr": full},
    }
    streams = outputs[output]
    async with server(tmp_path, "--workers", workers, "--request-log", "-", **streams) as (process, session):
        if output == "no input":
            assert os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull
        if workers == "2":
            # The server logs that a worker died.
            first = workers_of(process)[0]
            first.kill()
            with anyio.fail_after(30):
                while first in (now := workers_of(process)) or len(now) < 2 or not await is_ready(session):
                    await anyio.sleep(0.05)
        assert await stream_past_sigterm(process, session) == (30, 0)
    os.close(writing)
    os.close(full)


PRINTS = """
import os, subprocess, sys, logging
from frontends.logs.standard_streams import relay_standard_streams
from frontends.logs.operator_log import say
relay_standard_streams(say)
for number in range(int(sys.argv[1])):
    print("a line of some length, so that there are more of them than fit", number)
    if number % 100 == 0:
        logging.warning("a warning %d", number)
subprocess.run(["sh", "-c", "echo a child; echo its error >&2"], check=True)
print("the last line", file=sys.stderr)
"""


@pytest.mark.parametrize("output", ["stdout", "both"])
def test_a_program_with_unread_output_ends(output):
    reading, writing = os.pipe()
    streams: dict[str, Any] = {"stdout": writing, "stderr": writing if output == "both" else subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", PRINTS, "100000"], **streams)
    os.close(writing)
    try:
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 0
    if output == "stdout":
        assert errors.decode().count("WARNING:root:a warning") == 1000
        assert errors.endswith(b"its error\nthe last line\n")
    os.close(reading)


def test_output_that_is_read_is_whole_and_in_order():
    command = [sys.executable, "-u", "-c", PRINTS, "5000"]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=60)
    lines = process.stdout.decode().splitlines()
    assert [line for line in lines if line.startswith("a line")][-1].endswith(" 4999")
    assert lines[-3:] == ["a child", "its error", "the last line"]
    assert lines.index("WARNING:root:a warning 500") == 506
