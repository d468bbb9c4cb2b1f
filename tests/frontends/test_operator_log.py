"""The operator's log: formats, levels and times of the program, workers and libraries."""

import json
import logging
import logging.config
import re
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp
import anyio
import pytest
from program_support import MODULE, program

from frontends.logs import operator_log
from frontends.logs.operator_log import ENGINE_CONFIG, FORMAT, LEVEL, TIMES, Formatter

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"


@pytest.fixture
def form(monkeypatch):
    def choose(form="text", level="info", times=""):
        for name, value in ((FORMAT, form), (LEVEL, level), (TIMES, times)):
            monkeypatch.setenv(name, value)

    return choose


def record(message="it %s", *args, level=logging.WARNING, exc_info=None):
    return logging.LogRecord("vllm.engine", level, "core.py", 1, message, args or ("broke",), exc_info)


def test_text_has_time_and_level_without_a_terminal(form, capsys):
    form(times="1")
    operator_log.say("ready     go")
    operator_log.say("failed    the engine died")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(TIME + " info    llmserve  ready     go", lines[0])
    assert re.fullmatch(TIME + " error   llmserve  failed    the engine died", lines[1])
    assert re.fullmatch(TIME + " warning vllm.engine  it broke", Formatter().format(record()))


def test_a_terminal_gets_only_messages(form, capsys):
    form()
    operator_log.say("ready     go")
    assert capsys.readouterr().err == "llmserve  ready     go\n"
    assert Formatter().format(record()) == "vllm.engine  warning: it broke"


def test_json_is_one_object_per_line_even_for_several_lines_and_tracebacks(form, capsys):
    form("json")
    operator_log.say("worker    7 died")
    found = json.loads(capsys.readouterr().err)
    assert re.fullmatch(TIME, found.pop("time"))
    assert found == {"level": "warning", "logger": "llmserve", "stage": "worker", "message": "7 died"}
    line = Formatter().format(record("a\nb%s", "", exc_info=(ValueError, ValueError("two\nlines"), None)))
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("warning", "vllm.engine", "a\nb")
    assert "ValueError: two\nlines" in found["exception"]


def test_lines_below_the_level_are_omitted(form, capsys):
    for level, stages in (("info", ["ready", "log", "failed"]), ("warning", ["log", "failed"]), ("error", ["failed"])):
        form(level=level)
        for line in ("ready     x", "log       x", "failed    x"):
            operator_log.say(line)
        assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == stages


@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_the_engine_s_records_have_the_same_form(form, level, monkeypatch, capsys):
    """Configure logging from the file as vLLM's processes do."""
    form("json")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", level)
    engine = logging.getLogger("vllm")
    before = engine.handlers[:], engine.level, engine.propagate
    try:
        logging.config.dictConfig(json.loads(ENGINE_CONFIG.read_text()))
        logging.getLogger("vllm.v1").info("hello")
        logging.getLogger("vllm.v1").error("broken")
        found = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    finally:
        engine.handlers[:], engine.level, engine.propagate = before
    assert found == (["hello", "broken"] if level == "INFO" else ["broken"])


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_logs_nothing_but_objects_where_they_are_wanted(tmp_path, workers):
    async with program(tmp_path, "--log-format", "json", "--workers", workers, until='"ready"') as (process, _, lines):
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            assert await process.wait() == 0
    found = [json.loads(line) for line in lines]
    assert {"listening", "ready", "stopped"} <= {one["stage"] for one in found}
    assert all(one["level"] == "info" for one in found)


async def test_with_a_level_of_warnings_a_server_that_is_well_logs_nothing(tmp_path):
    path = tmp_path / "socket"
    command = [*MODULE, "--engine", "simulated", "--unix", str(path), "--log-level", "warning"]
    async with await anyio.open_process(command, stdout=None) as process:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            with anyio.fail_after(30):
                while not await is_ready(session):
                    await anyio.sleep(0.02)
        process.terminate()
        with anyio.fail_after(20):
            assert b"".join([part async for part in process.stderr]) == b""
    assert process.returncode == 0


async def is_ready(session):
    with suppress(aiohttp.ClientConnectorError):
        async with session.get("http://localhost/health/ready") as response:
            return response.status == 200
    return False


async def test_a_wrong_argument_is_an_object_too(tmp_path):
    command = [*MODULE, "--engine", "simulated", "--engine-arg", "no=1", "--log-format", "json", "--port", "0"]
    found = await anyio.run_process(command, check=False)
    assert found.returncode == 2
    last = json.loads(found.stderr.decode().splitlines()[-1])
    assert (last["level"], last["stage"]) == ("error", "error")
    assert "'no'" in last["message"]


def test_the_engine_s_file_is_beside_its_module():
    assert Path(operator_log.__file__).with_name("engine_logging.json").exists()
