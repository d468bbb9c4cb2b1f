"""The server as a program: its output, its end, and its errors for invalid arguments."""

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import textwrap
from contextlib import suppress

import anyio
import pytest
from program_support import MODULE, SOCKET, fetch, program

from frontends.rawsocket.client import SocketClient
from llmserve import GenerationRequest, Sampling


async def ask_in_the_background(tasks, url, max_tokens):
    """Send a request, and return when the server has it; the answer is appended to the list."""
    answers = []

    async def ask():
        answers.append(await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": max_tokens, "ignore_eos": True}))

    tasks.start_soon(ask)
    while b'"open":1' not in (await fetch(f"{url}/metrics.json"))[1]:
        await anyio.sleep(0.02)
    return answers


async def ask_and_be_cut_off(url):
    with suppress(OSError):
        await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True})


async def test_it_logs_each_stage_serves_and_stops_on_sigterm(tmp_path):
    async with program(tmp_path, "--slo-ttft", "1.0") as (process, url, lines):
        assert [line.split()[3] for line in lines] == ["listening", "model", "engine", "engine", "admission", "ready"]
        status, body = await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 3})
        assert status == 200, body
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    assert "stopped" in lines[-1]


# Serves nothing, and prints the number of objects that the garbage collector skips.
IDLE = """
import argparse, gc
from frontends.program.lifecycle import run
from frontends.program.settings import ProgramSettings
async def serve(settings):
    print(gc.get_freeze_count())
    return 0
run(argparse.ArgumentParser(), ["--engine", "simulated"], ProgramSettings, serve)
"""


def test_the_garbage_collector_skips_imported_objects():
    served = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True, timeout=60)
    assert int(served.stdout) > 10_000


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_takes_longer_than_its_time_ends_the_server(tmp_path, workers):
    command = [*MODULE, "--engine", "simulated", "--port", "0", "--workers", workers, "--engine-arg", "start_seconds=600"]
    environment = {**os.environ, "LLMSERVE_CACHE": str(tmp_path), "LLMSERVE_START_TIMEOUT": "0.3"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("error: the engine was not up within 0.3 s\n")


async def test_on_a_terminal_a_bar_fills_while_the_engine_loads(tmp_path):
    """A regression: the bar's task group was left before the manager that was entered inside it."""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [*MODULE, "--engine", "simulated", "--port", "0", "--engine-arg", "start_seconds=1"]
    environment = {**os.environ, "LLMSERVE_CACHE": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(*command, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    with anyio.fail_after(30):
        while b"  ready  " not in shown:
            shown += await anyio.to_thread.run_sync(os.read, master, 4096)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    os.close(master)
    assert b"of about 40 s" in shown
    assert json.loads((tmp_path / "starts.json").read_text())["simulated bundled"] >= 1


async def test_it_is_reachable_but_not_ready_while_the_engine_starts(tmp_path):
    async with program(tmp_path, "--engine-arg", "start_seconds=60", until="loading") as (process, url, _):
        assert (await fetch(f"{url}/health/live"))[0] == 200
        assert (await fetch(f"{url}/health/ready"))[0] == 503
        assert (await fetch(f"{url}/v1/completions", {"prompt": "hi"}))[0] == 503
        assert (await fetch(f"{url}/metrics"))[0] == 200
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0


# An engine whose start hangs in a thread that cannot be ended, as an import can.
HANGS = """
    import sys, threading
    from frontends.aiohttp_app import main
    from llmserve.runtime import starting
    from llmserve.engines.simulated.engine import SimulatedEngine

    async def run(self, *, task_status):
        await starting.start_in_thread(lambda check: threading.Event().wait())

    starting.GIVE_UP_SECONDS = float(sys.argv[1])
    SimulatedEngine.run = run
    main(sys.argv[2:])
"""


def hanging(tmp_path, seconds):
    script = tmp_path / "hangs.py"
    script.write_text(textwrap.dedent(HANGS))
    return program(tmp_path, module=[sys.executable, str(script), str(seconds), "--port", "0"], until="loading")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
async def test_a_start_that_hangs_is_given_up_at_a_signal(sent, tmp_path):
    async with hanging(tmp_path, 0.1) as (process, _, lines):
        process.send_signal(sent)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    assert "startup is cancelled" in lines[-2]
    assert "stopped" in lines[-1]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_a_start_at_once(sent, tmp_path):
    async with hanging(tmp_path, 600) as (process, _, _):
        process.send_signal(sent)
        assert b"startup is cancelled" in await process.stderr.readline()
        process.send_signal(sent)
        with anyio.fail_after(10):
            assert await process.wait() == -sent


async def test_sigterm_lets_open_requests_finish(tmp_path):
    async with program(tmp_path, "--engine-arg", "step_seconds=0.05") as (process, url, _), anyio.create_task_group() as tasks:
        answers = await ask_in_the_background(tasks, url, max_tokens=20)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    ((status, body),) = answers
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] == 20


async def test_a_second_signal_cancels_open_requests(tmp_path):
    async with program(tmp_path, "--engine-arg", "step_seconds=0.5") as (process, url, _), anyio.create_task_group() as tasks:
        answers = await ask_in_the_background(tasks, url, max_tokens=2000)
        process.send_signal(signal.SIGTERM)
        await anyio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            assert await process.wait() == 0
    assert answers[0][0] == 503


async def test_a_third_signal_ends_the_program_at_once(tmp_path):
    """The engine never confirms an abort, so that requests do not end."""
    arguments = ["--engine-arg", "step_seconds=0.5", "--engine-arg", "abort_seconds=600"]
    async with program(tmp_path, *arguments) as (process, url, _), anyio.create_task_group() as tasks:
        tasks.start_soon(ask_and_be_cut_off, url)
        while b'"open":1' not in (await fetch(f"{url}/metrics.json"))[1]:
            await anyio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert b"draining" in await process.stderr.readline()
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            await anyio.sleep(0.2)
        with anyio.fail_after(2):
            assert await process.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine-arg", "max_num_seq=3"], "unknown engine argument 'max_num_seq'"),
        (["--engine-arg", "3"], "key=value"),
        (["--slo-ttft", "-1"], "ttft must be a positive number"),
        (["--slo-ttft", "nan"], "ttft must be a positive number"),
        (["--slo-tpot", "0.0001"], "slo.tpot is 0.0001 s, but one step takes this engine"),
        (["--tenants", "no-such-file.toml"], "no-such-file.toml"),
        (["--max-wait", "0"], "max_wait must be a positive number"),
        (["--engine", "fast"], "invalid choice: 'fast'"),
        (["--port", "99999"], "99999"),
        (["--allowed-host", "http://a.example"], "is not a host name: omit the scheme and the port"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reachable from other machines"),
        (["--restarts", "-1"], "most must be a whole number of at least 0"),
        (["--stall-timeout", "0"], "stall_timeout must be a positive number"),
    ],
)
async def test_a_wrong_argument_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    # A free port, because several of these tests run at the same time.
    result = await anyio.run_process([*MODULE, "--engine", "simulated", "--port", "0", *arguments], check=False)
    assert result.returncode == 2
    last = result.stderr.decode().strip().splitlines()[-1]
    assert words in last
    assert "Traceback" not in result.stderr.decode()


async def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = await anyio.run_process([*MODULE, "--engine", "simulated", "--port", str(port)], check=False)
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr.decode()


async def test_the_socket_server_is_such_a_program_too(tmp_path):
    path = tmp_path / "llmserve.sock"
    listen = ("--listen", "tcp://127.0.0.1:0", "--listen", f"unix://{path}", "--engine-arg", "step_seconds=0.05")
    async with program(tmp_path, *listen, module=SOCKET) as (process, address, lines):
        assert [line.split()[3] for line in lines] == ["listening", "listening", "model", "engine", "engine", "admission", "ready"]
        async with SocketClient(address) as tcp, SocketClient(f"unix://{path}") as unix:
            request = GenerationRequest("hi", sampling=Sampling(max_tokens=10, ignore_eos=True))
            async with tcp.stream(request) as stream:
                process.send_signal(signal.SIGTERM)
                assert (await stream.collect()).usage.completion_tokens == 10
            with anyio.fail_after(10):
                await unix.wire.lost.wait()
                assert await process.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "9000"], "'9000' is not a valid address: use tcp://host:port"),
        (["--listen", "tls://127.0.0.1:0"], "requires --tls-cert and --tls-key"),
        (["--listen", "tls://127.0.0.1:0", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "TLS with /nowhere and /nowhere"),
        (["--listen", "unix:///nowhere/x.sock"], "cannot listen on unix:///nowhere/x.sock: No such file or directory"),
        (["--max-streams", "0"], "0 is less than 1"),
        (["--max-streams", "x"], "invalid"),
        (["--listen", "tcp://0.0.0.0:0"], "--listen 0.0.0.0 is reachable from other machines"),
    ],
)
async def test_a_wrong_argument_of_the_socket_server_is_one_line_too(arguments, words):
    result = await anyio.run_process([*SOCKET, "--engine", "simulated", *arguments], check=False)
    assert result.returncode == 2
    assert words in result.stderr.decode().strip().splitlines()[-1]
    assert "Traceback" not in result.stderr.decode()


async def test_tenants_are_read_again_when_their_file_changes_and_a_wrong_one_changes_nothing(tmp_path):
    table = tmp_path / "tenants.toml"
    table.write_text('unknown = "refuse"\n[tenants.alice]\n')
    async with program(tmp_path, "--tenants", str(table)) as (process, url, _):

        async def status(tenant):
            found, _ = await fetch(f"{url}/v1/completions", {"prompt": "hi", "max_tokens": 1, "user": tenant})
            return found

        async def said(words):
            with anyio.fail_after(10):
                while words not in (line := (await process.stderr.readline()).decode()):
                    assert line
            return line

        assert [await status("alice"), await status("bob")] == [200, 403]
        table.write_text("[tenants.bob]\nweight = -1")
        assert "tenants.bob.weight" in await said("not changed")
        assert [await status("alice"), await status("bob")] == [200, 403]
        table.write_text("[tenants.bob]\nweight = 2")
        await said("reloaded")
        assert [await status("alice"), await status("bob")] == [200, 200]
