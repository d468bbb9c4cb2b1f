"""The terminal tools, as processes beside a real server: `chat` in a real terminal, `top`, `doctor`."""

import asyncio
import os
import pty
import resource
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress

import anyio
import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from engines import ScriptedEngine
from http_support import running_server
from rich.console import Console

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.cli import chat, checks
from frontends.cli.main import COMMANDS
from frontends.cli.remote import plain
from frontends.cli.scrape import Scrape, quantile, rate, rates
from frontends.cli.top import view
from llmserve import Delta

pytestmark = pytest.mark.anyio
TOOL = "import sys; from frontends.cli.{0} import main; sys.exit(main(sys.argv[1:]))"
# Seconds after which a tool that does not answer fails the test.
PATIENCE = 60


@pytest.fixture
def anyio_backend():
    return "asyncio"


def command(tool, *arguments):
    return [sys.executable, "-c", TOOL.format(tool), *arguments]


async def run(tool, *arguments, text="", **environment):
    """Return the exit code, the output and the errors of a tool."""
    environment = {**os.environ, "LLMSERVE_API_KEY": "", "OPENAI_API_KEY": "", **environment}
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(command(tool, *arguments), input=text.encode(), env=environment, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Terminal:
    """A tool in a terminal of its own."""

    def __init__(self, *arguments):
        self._end, other = pty.openpty()
        # `setsid --ctty` makes it the controlling terminal, which turns Ctrl-C into SIGINT. A shell's job in
        # the background ignores SIGINT, and so would the tool if the tests run in one.
        shell = ["setsid", "--ctty", "env", "--default-signal=INT"]
        self.process = subprocess.Popen([*shell, *command(*arguments)], stdin=other, stdout=other, stderr=other)
        os.close(other)
        self.text = ""

    async def interrupt(self, words):
        """Press Ctrl-C until the tool prints these words.

        Python's `input` notices a signal between its prompt and its wait only at the next key.
        """
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.type("\x03")
            with suppress(AssertionError):
                return await self.expect(words, PATIENCE / 10)
        raise AssertionError((words, self.text))

    async def expect(self, words, patience=PATIENCE):
        """Wait until the tool prints these words after all that was expected before."""
        end = time.monotonic() + patience
        while words not in self.text:
            ready = await anyio.to_thread.run_sync(lambda: select.select([self._end], [], [], 0.1)[0])
            if ready:
                self.text += os.read(self._end, 65536).decode(errors="replace")
            assert time.monotonic() < end, (words, self.text)
        self.text = self.text.partition(words)[2]

    def type(self, text):
        os.write(self._end, text.encode(errors="surrogateescape"))

    async def ends(self):
        return await anyio.to_thread.run_sync(lambda: self.process.wait(PATIENCE))


class Talker(ScriptedEngine):
    """Sends two tokens of each answer, and ends it only if it may have no more."""

    @property
    def info(self):
        return attrs.evolve(super().info, max_model_len=1000)

    async def submit(self, request_id, prompt, sampling, priority, sink):
        await super().submit(request_id, prompt, sampling, priority, sink)
        for token in (1, 2):
            sink.put(Delta(f"word{token} ", (token,), finish_reason="length" if token == sampling.max_tokens else None))


async def test_ctrl_c_stops_the_answer_and_not_the_chat():
    engine = Talker()
    async with running_server(engine) as server:
        tool = Terminal("chat", server.url)
        await tool.expect(f"sim at {server.url}")
        await tool.expect("> ")
        tool.type("hello\n")
        await tool.expect("word2")
        assert len(engine.held) == 1
        tool.type("\x03")
        await tool.expect("[stopped]")
        with anyio.fail_after(PATIENCE):
            while engine.held:
                await anyio.sleep(0.01)
        await tool.expect("> ")
        await tool.interrupt("Ctrl-C stops an answer")
        tool.type("/quit\n")
        assert await tool.ends() == 0


def test_ctrl_c_between_an_answer_and_the_prompt_does_not_end_the_chat(monkeypatch, capsys):
    """A regression, which the test before this one met on a busy machine."""
    messages = iter(["hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(messages))
    write = print

    def interrupted(text="", **more):
        if text == "\n[3 tokens]":
            raise KeyboardInterrupt
        write(text, **more)

    class Answered(chat.Conversation):
        def __init__(self):
            pass

        async def ask(self, text):
            return "3 tokens"

    monkeypatch.setattr("builtins.print", interrupted)
    with asyncio.Runner() as runner:
        chat._talk(runner, Answered())
    assert capsys.readouterr().out.count(chat.HINT) == 2
    assert next(messages, None) is None


async def test_a_message_in_a_pipe_gets_one_answer():
    async with running_server(Talker()) as server:
        assert await run("chat", f"{server.url}/v1", "--max-tokens", "2", text="hello") == (0, "word1 word2 \n", "")


def test_text_of_a_server_cannot_control_the_terminal():
    assert plain("a\x1b[2J\x9b2J\x07\r\n\tאב 👩\u200d💻") == "a\ufffd[2J\ufffd2J\ufffd\n\tאב 👩\u200d💻"


async def answer_of(*lines, text="hello", kind="text/event-stream", cut=False):
    """Return what `chat` does with the lines of a scripted server's stream, which may break off."""

    async def complete(request):
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        await response.write(b"\n".join(lines))
        if cut:
            request.transport.close()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    async with TestServer(app) as server:
        return await run("chat", str(server.make_url("/")), "--model", "any", text=text)


async def test_chat_reads_the_streams_of_other_servers():
    hello = b'data:{"error": null, "choices": [{"delta": {"content": "a\\u001b]0;b"}}]}\r'
    assert await answer_of(b": ping\r", hello, b"\r", b"data:[DONE]\r") == (0, "a\ufffd]0;b\n", "")
    code, _, error = await answer_of(b"data: {broken")
    assert (code, error.count("\n"), "no JSON object" in error) == (2, 1, True)


@pytest.mark.parametrize(
    ("lines", "more", "words"),
    [
        ([b"<html>"], {"kind": "text/html"}, "answers with text/html that has no events"),
        ([b'data: {"choices": [{"delta": {"content": "a"}}]}'], {}, "closed the connection in the middle of the answer"),
        ([b'data: {"choices": [{"delta": {"content": "a"}}]}', b""], {"cut": True}, "closed the connection in the middle of the answer"),
        ([b'data: {"choices": 5}'], {}, "an event that is no part of a chat"),
        ([b'data: {"choices": [{"delta": "a"}]}'], {}, "an event that is no part of a chat"),
        ([b"data: " + b"x" * 2**24], {}, "sends a line of more than 4,194,304 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_one_line(lines, more, words):
    code, _, error = await answer_of(*lines, **more)
    assert (code, error.count("\n")) == (2, 1)
    assert words in error


async def test_an_answer_may_end_with_its_last_choice():
    last = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "usage": "none"}'
    assert await answer_of(last) == (0, "a\n", "")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat/completions", "/v1/models?a=b#c"])
async def test_a_pasted_path_of_the_api_is_left_out(path):
    async with running_server(Talker()) as server:
        assert await run("chat", f"{server.url}{path}", "--max-tokens", "2", text="hello") == (0, "word1 word2 \n", "")


async def test_another_path_is_one_line():
    async with running_server() as server:
        code, _, error = await run("chat", f"{server.url}/docs", text="hello")
    assert (code, error.count("\n")) == (2, 1)
    assert error.endswith(f"; {server.url}/docs should be the server's address, without the path of a route\n")


@pytest.mark.parametrize("tool", ["chat", "top"])
async def test_a_line_break_in_the_key_is_one_line(tool):
    code, _, error = await run(tool, "127.0.0.1:1", LLMSERVE_API_KEY="secret\n")
    words = "the API key has a line break or another control character: correct --api-key or LLMSERVE_API_KEY"
    assert (code, error) == (2, f"llmserve {tool}: error: {words}\n")


async def test_the_chat_goes_on_after_an_error():
    async with running_server(Talker()) as server:
        tool = Terminal("chat", server.url, "--max-tokens", "2")
        await tool.expect("> ")
        tool.type("\udcff\n")
        await tool.expect("[error: the ")
        # Longer than a line of the terminal itself.
        tool.type("x" * 20_000 + "\n")
        await tool.expect("word2")
        tool.type("hello\n")
        await tool.expect("word2")
        tool.type("/quit\n")
        assert await tool.ends() == 0


def test_top_draws_a_tenant_s_name_as_it_is():
    name = "[/red]\x1b[2J"
    text = "".join(f'llmserve_tenant_requests_total{{tenant="{tenant}"}} 1\n' for tenant in (name, "other"))
    console = Console(width=80)
    with console.capture() as drawn:
        console.print(view([Scrape.parse(text, 0.0)]))
    assert "[/red]\ufffd[2J" in drawn.get()
    assert name not in drawn.get()


async def test_top_names_the_address_that_has_no_metrics():
    async def page(_request):
        return web.Response(text="<html>{hello</html>")

    app = web.Application()
    app.router.add_get("/metrics", page)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        assert await run("top", url) == (2, "", f"llmserve top: error: {url}/metrics is no text of Prometheus\n")


LLMSERVE = "import sys; from frontends.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("words", [["config"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_a_standard_output_that_cannot_be_written_is_no_traceback(words):
    reading, writing = os.pipe()
    os.close(reading)
    llmserve = [sys.executable, "-c", LLMSERVE, *words]
    # argparse ignores an error of its own writes: the code is 0 where the buffer has no room for a long help.
    good = {0} if "--help" in words else set()
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(llmserve, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (done.returncode in {1} | good, done.stderr) == (True, b"")
    with open("/dev/full", "w") as full:
        done = subprocess.run(llmserve, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    error = b"llmserve: error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) in [(2, error), *((code, b"") for code in good)]


@pytest.mark.parametrize("words", [["--help"], *([name] for name, command in COMMANDS.items() if command.prints)], ids=" ".join)
def test_a_closed_standard_output_is_one_line(words):
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", LLMSERVE, *words], stderr=subprocess.PIPE, check=False)
    error = f"llmserve {words[0]}: error: standard output is closed, and this command prints to it\n"
    assert (done.returncode, done.stderr.decode()) == (2, error)


@pytest.mark.parametrize("tool", ["chat", "top"])
async def test_a_server_that_cannot_be_called_is_one_line(tool):
    assert await run(tool, "127.0.0.1:1") == (2, "", f"llmserve {tool}: error: cannot reach http://127.0.0.1:1: Connection refused\n")
    async with running_server(app={"access": Access(Keys.single("secret"))}) as server:
        code, _, error = await run(tool, server.url)
        assert code == 2
        assert error.endswith("pass --api-key, or set LLMSERVE_API_KEY\n")
        code, output, _ = await run(tool, server.url, text="hi", LLMSERVE_API_KEY="secret")
        assert code == 0
        assert output


@pytest.mark.parametrize("columns", [80, 140])
async def test_top_prints_the_figures_within_the_terminal_s_width(columns):
    async with running_server() as server:
        code, output, _ = await run("top", server.url, COLUMNS=str(columns))
    assert code == 0
    for words in ("sim at http", "ready", "running", "waiting", "output tokens/s", "time to first token", "requests/s", "queue held by"):
        assert words in output
    assert all(len(line) <= columns for line in output.splitlines())


TEXT = """# TYPE {prefix}_seconds histogram
{prefix}_seconds_bucket{{le="0.1"}} {0}
{prefix}_seconds_bucket{{le="0.2"}} {1}
{prefix}_seconds_bucket{{le="+Inf"}} {2}
# TYPE llmserve_refused counter
llmserve_refused_total{{reason="queue_full"}} {2}
llmserve_refused_total{{reason="late"}} 4
"""


def scraped(at, *counts, prefix="llmserve_time_to_first_token"):
    return Scrape.parse(TEXT.format(*counts, prefix=prefix), at)


@pytest.mark.parametrize("prefix", ["llmserve_time_to_first_token", "vllm:time_to_first_token"])
def test_quantiles_are_those_of_the_time_between_two_scrapes(prefix):
    before, now = scraped(0.0, 100, 100, 100, prefix=prefix), scraped(2.0, 105, 110, 110, prefix=prefix)
    assert quantile(now, before, "llmserve_time_to_first_token_seconds", 0.5) == pytest.approx(0.1)
    assert quantile(now, before, "llmserve_time_to_first_token_seconds", 0.75) == pytest.approx(0.15)
    assert quantile(now, now, "llmserve_time_to_first_token_seconds", 0.5) is None


def test_a_quantile_beyond_the_last_bound_is_that_bound():
    name = "llmserve_time_to_first_token_seconds"
    assert quantile(scraped(1.0, 0, 0, 10), scraped(0.0, 0, 0, 0), name, 0.5) == 0.2


def test_rates_are_per_second_and_by_label():
    before, now = scraped(0.0, 0, 0, 0), scraped(2.0, 0, 0, 10)
    assert rate(now, before, "llmserve_refused_total") == 5
    assert rates(now, before, "llmserve_refused_total", "reason") == {"queue_full": 5}
    # The server was restarted: it counts from zero.
    assert rate(scraped(4.0, 0, 0, 1), now, "llmserve_refused_total") == 0
    assert rate(now, before, "llmserve_unknown_total") is None


async def test_each_line_of_doctor_is_ok_or_has_a_command():
    code, output, _ = await run("doctor", "--engine", "simulated", "--port", "0")
    lines = output.splitlines()
    assert {line[:3] for line in lines} <= {"ok ", "fix", "   "}
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert line.startswith("fix") == following.startswith("   "), output
    assert code == (1 if "fix" in output else 0)


def test_doctor_finds_a_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        found = checks.port("127.0.0.1", number)
        assert (found.fact, f":{number}" in found.fix) == (f"127.0.0.1:{number}: Address already in use", True)
    assert checks.port("127.0.0.1", number).fix is None


def test_doctor_finds_a_cache_without_room(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path / "not" / "yet"))
    assert checks.cache().fix is None
    monkeypatch.setattr(checks, "BUNDLED_BYTES", 2**60)
    assert checks.cache().fix == "export LLMSERVE_CACHE=/a/folder/with/room"


def test_doctor_finds_a_low_limit_of_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert checks.descriptors().fact.startswith(f"{soft:,} open files")
    assert (checks.descriptors().fix is None) == (hard >= checks.MIN_DESCRIPTORS)


def test_doctor_names_the_model_that_does_not_exist():
    found = checks.model("/no/such/folder", "vllm")
    assert found.fix is not None


async def test_bash_completes_an_option():
    program = "import sys; from frontends.cli.main import main; sys.exit(main(['completion', 'bash']))"
    script = f"""
        source <({sys.executable} -c "{program}")
        COMP_WORDS=(llmserve serve --max-r) COMP_CWORD=2
        _shtab_llmserve llmserve --max-r serve
        echo "${{COMPREPLY[@]}}"
    """
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(["bash", "-c", script])
    assert done.stdout == b"--max-running\n"
