"""SIGHUP reloads the settings that can change, all or none of them, without ending a stream."""

import asyncio
import logging
import pathlib
import re
import signal
import sys
from contextlib import suppress

import anyio
import pytest
from program_support import MODULE, SIMULATED, SOCKET, Streams, fetch, metrics, program, until, workers_of

from frontends.access.control import Access
from frontends.http.settings import HTTPServerSettings
from frontends.logs.operator_log import LEVEL
from frontends.options.definitions import key_of, make, name_of, options_of
from frontends.options.sources import layers, merged
from frontends.program.reload import LiveSettings
from frontends.rawsocket.client import SocketClient
from llmserve import InvalidRequest

pytestmark = pytest.mark.anyio
PATIENCE = 60
SHARED = (sys.executable, "-m", "tests.support.core_program")
RAW = (*SOCKET, "--listen", "tcp://127.0.0.1:0")


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def reload(process, last):
    """Send SIGHUP; return the lines about the reload until one that has the words `last`."""
    process.send_signal(signal.SIGHUP)
    lines = []
    with anyio.fail_after(PATIENCE):
        while not lines or last not in lines[-1]:
            line = (await process.stderr.readline()).decode()
            assert line, lines
            if "reload  " in line:
                lines.append(line.partition("reload    ")[2].strip())
    assert process.returncode is None
    return lines[1:]


# The engine and its options: one process, workers with an engine each, and workers that share one.
KINDS = {
    "one process": (MODULE, SIMULATED, ("--workers", "1")),
    "workers": (MODULE, SIMULATED, ("--workers", "2")),
    "workers with one engine": (SHARED, ("--engine", "core", "--model", "sim"), ("--workers", "2")),
}


async def answer(url, max_tokens):
    """Return the status and the body of an answer, once a worker takes requests."""
    with anyio.fail_after(PATIENCE):
        while True:
            with suppress(OSError):
                status, body = await fetch(f"{url}/generate", {"prompt": "hi", "max_tokens": max_tokens})
                if status != 503:
                    return status, body
            await anyio.sleep(0.05)


@pytest.mark.parametrize(("module", "engine", "options"), KINDS.values(), ids=KINDS)
async def test_a_server_gets_new_settings_and_cuts_no_stream(tmp_path, module, engine, options):
    file = tmp_path / "llmserve.toml"
    file.write_text("max-running = 1\nmax-waiting = 9\nmax-tokens = 3000")
    options = (*options, "--config", str(file), "--engine-arg", "step_seconds=0.02", "--drain-timeout", "1", "--port", "0")
    async with program(tmp_path, *options, module=module, engine=engine) as (process, url, _), Streams(url) as streams:
        await streams.begin()
        waiting = asyncio.create_task(streams.begin())
        await until(url, lambda found: found["admission"]["waiting"] == 1)
        file.write_text("max-running = 2\nmax-waiting = 0\nmax-tokens = 5\ntenant-limit = 2\ndrain-timeout = 9\nkeepalive-interval = 5")
        assert await reload(process, "needs a restart") == [
            "max-running: 1 -> 2",
            "max-waiting: 9 -> 0",
            "tenant-limit: not set -> 2",
            "max-tokens: 3000 -> 5",
            "needs a restart: keepalive-interval",
        ]
        with anyio.fail_after(PATIENCE):
            await waiting
        found = (await metrics(url))["admission"]
        assert (found["limit"], found["max_waiting"], found["running"], found["waiting"]) == (2, 0, 2, 0)
        status, body = await fetch(f"{url}/generate", {"prompt": "hi", "max_tokens": 6})
        assert (status, b"max_tokens" in body) == (400, True)
        status, _ = await fetch(f"{url}/generate", {"prompt": "hi", "max_tokens": 5})
        assert status == 429
        await streams.end()
        for worker in workers_of(process):
            # Those that replace them have the new settings too.
            worker.kill()
        await until(url, lambda found: found["admission"]["running"] == 0)
        assert (await answer(url, 5))[0] == 200
        status, body = await answer(url, 6)
        assert (status, b"max_tokens" in body) == (400, True)


async def test_a_file_with_an_error_changes_nothing(tmp_path):
    file = tmp_path / "llmserve.toml"
    file.write_text("max-running = 2")
    async with program(tmp_path, "--config", str(file), "--workers", "1") as (process, url, _):
        for text, words in (
            ("max-running = 3\nmax-wait = 'x'", f"--config {file}: max-wait: 'x' is not a valid value"),
            ("max-running = 3\nmax-wiat = 1", f"--config {file}: unknown key 'max-wiat': do you mean 'max-wait'?"),
            ("max-running = 3\nmax-tokens = -1", "max_tokens must be a whole number of at least 1, not -1"),
            ("max-running = 3\nengine-arg = ['x']", "engine"),
            ("max-running = 3\npolicy = 'unlimited'", "the policy unlimited has no limit: remove max_running"),
            ("max-running = ", f"--config {file}: not TOML"),
            ("[" * 5000, f"--config {file}: "),
        ):
            file.write_text(text)
            (line,) = await reload(process, "no setting changed")
            assert words in line
            assert (await metrics(url))["admission"]["limit"] == 2
        file.write_text("max-running = 4\nlog-level = 'error'\ndrain-timeout = 0.5")
        process.send_signal(signal.SIGHUP)
        await until(url, lambda found: found["admission"]["limit"] == 4)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE):
            said = (await process.stderr.read()).decode()
        # The level error hides the lines about the reload and the drain.
        assert "drain" not in said


async def test_a_raw_socket_server_reloads_its_settings_too(tmp_path):
    file = tmp_path / "llmserve.toml"
    file.write_text("max-tokens = 4")
    async with program(tmp_path, "--config", str(file), module=RAW) as (process, url, _):
        async with SocketClient(url) as client:
            with pytest.raises(InvalidRequest, match="max_tokens"):
                await client.generate("hi", max_tokens=8)
            file.write_text("max-tokens = 8\nmax-streams = 1")
            assert await reload(process, "needs") == ["max-tokens: 4 -> 8", "needs a restart: max-streams"]
            await client.generate("hi", max_tokens=8)


@pytest.fixture
def log_level(monkeypatch):
    """Restore the level of this process's log, which a reload sets, and which programs of other tests would inherit."""
    monkeypatch.setenv(LEVEL, "info")
    loggers = [logging.getLogger(name) for name in ("llmserve", "frontends")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def live(tmp_path, text, environ=None, **arguments):
    """Return settings that a file and other sources give, a function that reloads them, and the applied settings."""
    file, applied = tmp_path / "f.toml", []
    file.write_text(text)
    kind = HTTPServerSettings

    def read():
        return make(kind, merged(layers(kind, {"config": file} | arguments, environ or {})))

    settings = LiveSettings(read(), read)

    async def again(text):
        file.write_text(text)
        await settings.reload(Access(), applied.append)
        return settings.current.limits

    return again, applied


@pytest.mark.usefixtures("log_level")
async def test_other_sources_still_come_first(tmp_path, capsys):
    again, _ = live(tmp_path, "max-wait = 1", {"LLMSERVE_MAX_WAIT": "2"}, max_tokens=3)
    limits = await again("max-wait = 4\nmax-tokens = 5\nmax-running = 6")
    assert (limits.max_wait, limits.max_tokens, limits.max_running) == (2.0, 3, 6)
    assert capsys.readouterr().err == "llmserve  reload    max-running: not set -> 6\n"


@pytest.mark.usefixtures("log_level")
@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("slo-ttft = 1", "max-running = 4\nmax-wait = 9", (1.0, None)),
        ("max-running = 4", "slo-ttft = 1\nmax-wait = 9", (None, 4)),
        ("max-running = 4", "max-running = 0\nmax-wait = 9", (None, 4)),
        # Both files select the policy fixed, but the new limit with the old policy would not.
        ("max-running = 4", "policy = 'fixed'\nslo-ttft = 1\nmax-wait = 9", (None, 4)),
        ("slo-ttft = 1", "slo-ttft = 2\nslo-tpot = 1\nmax-wait = 9", (2.0, None)),
    ],
)
async def test_another_policy_needs_a_restart_and_all_else_is_applied(tmp_path, capsys, before, after, kept):
    again, applied = live(tmp_path, before)
    limits = await again(after)
    assert (limits.slo_ttft, limits.max_running, limits.max_wait) == (*kept, 9.0)
    assert [settings.limits for settings in applied] == [limits]
    log = capsys.readouterr().err
    assert ("needs a restart" in log) == (kept != (2.0, None))
    assert "max-wait: 30.0 -> 9.0" in log


@pytest.mark.usefixtures("log_level")
async def test_values_that_need_a_restart_are_not_logged(tmp_path, capsys):
    again, _ = live(tmp_path, "")
    await again('engine-arg = ["hf_token=\\"secret\\""]\notlp-endpoint = "http://user:secret@host"\nengine = "simulated"')
    log = capsys.readouterr().err
    assert "secret" not in log
    assert log.startswith("llmserve  reload    ")


def test_the_documentation_lists_the_options_that_reload():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "operations" / "README.md").read_text()
    listed = re.findall(r"^\| `--([a-z-]+)` \|", page.partition("## Reload")[2].partition("\n## ")[0], re.MULTILINE)
    assert listed == [key_of(name_of(*pair)) for pair in options_of(HTTPServerSettings) if pair[1].reloads]
