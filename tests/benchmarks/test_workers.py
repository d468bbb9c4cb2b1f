"""Generators on other hosts: what they send is counted exactly, and what is no worker does no harm."""

import asyncio
import contextlib
import os
import re
import signal
import sys

import anyio
import attrs
import msgspec
import psutil
import pytest
from benchmarks_support import WORKLOAD

from benchmarks.__main__ import main
from benchmarks.analysis import report
from benchmarks.arguments import address
from benchmarks.generator import clocks, messages
from benchmarks.generator.hosts import (
    MAX_HANDSHAKES,
    MIN_TOKEN,
    TOKEN_VARIABLE,
    Challenge,
    Hello,
    Listener,
    Welcome,
    connect,
    open_pool,
    prove,
)
from benchmarks.generator.messages import Clock, Finished, Link, LinkLost, Ready
from benchmarks.generator.processes import Member, Part, WorkerLost
from benchmarks.recording import storage
from benchmarks.targets import TargetError
from benchmarks.targets.server import ClientOptions
from benchmarks.truth.behaviours import TOKENS, Behaviour, Fault
from benchmarks.truth.server import serve
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import AtMost, Empirical, Fixed, LogNormal, Normal, Text, Texts
from benchmarks.workload.traces import Arrival

PLAN = PointPlan(point=0, label="test", load=Load(concurrency=1), workload=WORKLOAD, requests=1)
TOKEN = "a token of the tests"
FAST = Behaviour(name="fast", does="", first=0.01, gap=0.001)
HANGING = Behaviour(name="hanging", does="", fault=Fault(kind="hang", every=1))
LOAD = ["--concurrency", "4", "--requests", "16", "--per-client", "4", "--output-tokens", str(TOKENS), "--prompt-tokens", "8", "--in-step"]


@pytest.fixture
def anyio_backend():
    """Real sockets need asyncio's own clock."""
    return "asyncio"


@contextlib.asynccontextmanager
async def program(*arguments):
    """Start a command of the benchmarks, and kill it at the end."""
    environment = {**os.environ, TOKEN_VARIABLE: TOKEN}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_line(process, pattern):
    """Return the match in the first line of a program's errors that has one."""
    lines = []
    with anyio.fail_after(120):
        while line := (await process.stderr.readline()).decode():
            lines.append(line)
            if found := re.search(pattern, line):
                return found
    raise AssertionError(f"the program ended without {pattern!r}: {lines}")


def measured_with(url, out, *more):
    return program("run", "--target", url, *LOAD, "--workers-listen", "127.0.0.1:0", "--expect-workers", "2", "--out", str(out), *more)


async def ended(process):
    with anyio.fail_after(120):
        output, errors = await process.communicate()
    return process.returncode, output.decode() + errors.decode()


@pytest.mark.anyio
async def test_two_workers_measure_what_the_server_did(tmp_path):
    out = tmp_path / "run.json"
    async with serve(FAST) as (url, scripted), measured_with(url, out) as run:
        where = (await until_line(run, r"worker --connect (\S+)")).group(1)
        async with program("worker", "--connect", where, "--processes", "2") as workers:
            code, text = await ended(run)
            assert code == 0, text
            assert (await ended(workers))[0] == 0
    recording = storage.read(out)
    (point,) = recording.run.points
    assert point.complete
    assert point.processes == 2
    assert [worker.requests for worker in point.workers] == [8, 8]
    # Both clocks are the same one, so the true offset is 0.
    assert all(abs(worker.clock_offset) <= worker.clock_error for worker in point.workers)
    assert len(scripted.log) == len(recording.records) == 16
    assert {entry.outcome for entry in scripted.log} == {record.outcome for record in recording.records} == {"ok"}
    assert sorted(int(record.request_id) for record in recording.records) == list(range(16))
    assert [record.number for record in recording.records] == list(range(16))
    assert all(record.completion_tokens == TOKENS for record in recording.records)
    (line,) = report.analyse(recording).remarks["Workers"][:1]
    assert re.fullmatch(r"\S+-\d+: 8 requests in 1 points, clock [+-]\d+\.\d{3} s, known within \d+\.\d{2} ms", line)
    assert TOKEN not in out.read_text()


@pytest.mark.anyio
async def test_a_killed_worker_makes_the_point_invalid_and_a_new_one_measures_it_again(tmp_path):
    out = tmp_path / "run.json"
    async with serve(HANGING) as (url, scripted), measured_with(url, out) as run, contextlib.AsyncExitStack() as stack:
        where = (await until_line(run, r"worker --connect (\S+)")).group(1)
        first, _ = [await stack.enter_async_context(program("worker", "--connect", where)) for _ in range(2)]
        with anyio.fail_after(120):
            while len(scripted.log) < 4:
                await anyio.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        await until_line(run, r"not valid: cut short after \d of 16 requests: worker \S+ was lost: it closed its connection")
        scripted.behaviour = FAST
        await until_line(run, "waiting for 1 of 2 workers")
        await stack.enter_async_context(program("worker", "--connect", where))
        code, text = await ended(run)
        assert code == 0, text
    lost, again = storage.read(out).run.points
    assert not lost.complete
    assert again.complete
    assert [worker.requests for worker in again.workers] == [8, 8]
    assert {entry.outcome for entry in scripted.log[-16:]} == {"ok"}
    assert re.search(r"cut short after \d of 16 requests: worker \S+ was lost", text)


@pytest.mark.anyio
async def test_a_killed_process_of_this_host_ends_the_run_in_one_line_with_what_was_measured(tmp_path):
    """Regression: a traceback of exception groups."""
    out = tmp_path / "run.json"
    async with serve(HANGING) as (url, scripted), program("run", "--target", url, *LOAD, "--processes", "2", "--out", str(out)) as run:
        with anyio.fail_after(120):
            while len(scripted.log) < 4:
                await anyio.sleep(0.01)
        workers = [child for child in psutil.Process(run.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        workers[0].kill()
        code, text = await ended(run)
    assert code == 2
    assert text.splitlines()[-1].endswith("error: a generator process died; its own message is above")
    assert "Traceback" not in text
    assert storage.read(out).run.points[0].problem == "a generator process died; its own message is above"


@contextlib.asynccontextmanager
async def pool(expected=1, version="1"):
    """Yield a pool, its address and its lines for the user."""
    lines = []
    async with open_pool(Listener(address=("127.0.0.1", 0), expected=expected, token=TOKEN), version, lines.append) as opened:
        yield opened, address(lines[0].split()[-1]), lines


def never_sent():
    """Return a message that no worker sends, as a frame."""
    content = msgspec.msgpack.encode(Finished(0.0, None, True))
    return len(content).to_bytes(4) + content


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x00\x00\x00\x01\xc1", never_sent(), b"\x00\x00"],
    ids=["nothing", "HTTP", "a long message", "no message", "another message", "half a message"],
)
@pytest.mark.anyio
async def test_the_bytes_of_a_port_scanner_disturb_no_worker(sent):
    async with pool() as (opened, where, lines):
        reader, writer = await asyncio.open_connection(*where)
        writer.write(sent)
        writer.write_eof()
        with anyio.fail_after(60), contextlib.suppress(ConnectionError):
            # The challenge, and the end.
            assert len(await reader.read()) < 100
        await Link(reader, writer).aclose()
        link = await connect(where, TOKEN, "1", wait_seconds=0)
        (member,) = await opened.gather()
        assert len(lines) == 2, "a scanner is not worth a line"
        await link.aclose()
        assert member.name.endswith(str(os.getpid()))


@pytest.mark.anyio
async def test_connections_that_say_nothing_keep_no_worker_out():
    async with pool() as (opened, where, _), contextlib.AsyncExitStack() as idle:
        for _ in range(MAX_HANDSHAKES + 1):
            reader, writer = await asyncio.open_connection(*where)
            idle.push_async_callback(Link(reader, writer).aclose)
        link = await connect(where, TOKEN, "1", wait_seconds=0)
        assert len(await opened.gather()) == 1
        await link.aclose()


@pytest.mark.parametrize(
    ("token", "version", "words"),
    [("another token of the tests", "1", "wrong token"), (TOKEN, "2", "the worker has llmserve 2, and the run 1")],
)
@pytest.mark.anyio
async def test_a_worker_that_is_not_welcome_is_refused_with_the_reason(token, version, words):
    async with pool() as (opened, where, lines):
        with pytest.raises(TargetError, match=f"refuses this worker: {words}"):
            await connect(where, token, version, wait_seconds=0)
        assert words in lines[-1]
        opened.wait_seconds = 0
        with pytest.raises(TargetError, match="--expect-workers 1: only 0 connected within 0 s"):
            await opened.gather()


@pytest.mark.anyio
async def test_a_run_takes_as_many_workers_as_it_expects_and_replaces_lost_ones():
    async with pool() as (opened, where, _):
        first = await connect(where, TOKEN, "1", wait_seconds=0)
        with pytest.raises(TargetError, match="already has its 1 workers"):
            await connect(where, TOKEN, "1", wait_seconds=0)
        (member,) = await opened.gather()
        first.close()
        with anyio.fail_after(60):
            while not member.link.is_lost:
                await anyio.sleep(0.01)
        second = await connect(where, TOKEN, "1", wait_seconds=0)
        assert await opened.gather() != [member]
        await second.aclose()


@pytest.mark.anyio
async def test_a_worker_does_nothing_for_a_run_that_does_not_know_the_token():
    gone = asyncio.Event()

    async def impostor(reader, writer):
        link, challenge = Link(reader, writer), Challenge(bytes(16))
        await link.send(challenge)
        hello = await link.receive(msgspec.msgpack.Decoder(Hello))
        # The worker's own proof is no proof of the run.
        await link.send(Welcome(hello.proof))
        await link.aclose()
        gone.set()

    server = await asyncio.start_server(impostor, "127.0.0.1", 0)
    with pytest.raises(TargetError, match="does not know the token"):
        await connect(server.sockets[0].getsockname(), TOKEN, "1", wait_seconds=0)
    await gone.wait()
    server.close()


@pytest.mark.anyio
async def test_a_worker_reports_what_is_no_run():
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    where = server.sockets[0].getsockname()
    with pytest.raises(TargetError, match="is no run that waits for workers: it closed its connection"):
        await connect(where, TOKEN, "1", wait_seconds=0)
    server.close()
    with pytest.raises(TargetError, match=f"no run at 127.0.0.1:{where[1]}"):
        await connect(where, TOKEN, "1", wait_seconds=0)


def test_a_proof_holds_for_one_side_and_one_token():
    proofs = {
        prove(token, role, ours, theirs)
        for token in ("a", "b")
        for role in ("run", "worker")
        for ours, theirs in ((b"1", b"2"), (b"2", b"1"))
    }
    assert len(proofs) == 8


@contextlib.asynccontextmanager
async def linked():
    """Yield both ends of a link, the second as a stream."""
    arrived = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: arrived.put_nowait(streams), "127.0.0.1", 0)
    link = Link(*await asyncio.open_connection(*server.sockets[0].getsockname()))
    reader, writer = await arrived.get()
    yield link, reader, writer
    await link.aclose()
    writer.close()
    server.close()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "has sent nothing for 0.01 s"),
        (b"\x00\x00", "has sent nothing for 0.01 s"),
        (b"\x7f\xff\xff\xff", "sent a message that is too long"),
        (b"\x00\x00\x00\x01\xc1", "sent an invalid message"),
    ],
)
@pytest.mark.anyio
async def test_a_link_is_lost_at_what_is_no_message(sent, words):
    async with linked() as (link, _, writer):
        writer.write(sent)
        with pytest.raises(LinkLost, match=words):
            # A message that has arrived is read without a wait.
            await link.receive(messages.FROM_WORKER, seconds=0.01 if "nothing" in words else 60.0)


@pytest.mark.anyio
async def test_a_cancelled_call_loses_no_message():
    content = msgspec.msgpack.encode(Clock(5.0))
    frame = len(content).to_bytes(4) + content
    async with linked() as (link, _, writer):
        for cut in range(len(frame)):
            writer.write(frame[:cut])
            with pytest.raises(LinkLost):
                await link.receive(messages.FROM_WORKER, seconds=0.001)
            writer.write(frame[cut:])
            assert await link.receive(messages.FROM_WORKER) == Clock(5.0)


class Answering:
    """A link whose other end reads a clock with a fixed offset, after delays in virtual time."""

    def __init__(self, offset, delays):
        self.offset, self.now, self.delays = offset, 100.0, iter(delays)

    def clock(self):
        return self.now

    async def send(self, message):
        self.now += next(self.delays)
        self.answer = Clock(self.now + self.offset)

    async def receive(self, decoder):
        self.now += next(self.delays)
        return self.answer


@pytest.mark.parametrize("offset", [0.0, 5.0, -1e6])
@pytest.mark.anyio
async def test_the_offset_of_a_clock_is_known_within_half_of_the_shortest_round_trip(offset):
    # The fourth way there and back is the shortest, and both ways differ.
    delays = [0.5, 0.1] * 3 + [0.03, 0.01] + [0.1, 0.5] * 4
    link = Answering(offset, delays)
    found = await clocks.measure(link, link.clock)  # type: ignore[arg-type]  # a link in virtual time
    assert found.error == pytest.approx(0.02)
    assert abs(found.seconds - offset) <= found.error


@pytest.mark.anyio
async def test_a_message_of_a_job_before_does_not_count_for_the_next():
    async with linked() as (link, _, writer):
        part = Part(Member(link, "w"))
        other = Link(asyncio.StreamReader(), writer)
        for message in (Clock(1.0), Ready(), Finished(1.0, None, True)):
            await other.send(message)
        await part.until(Ready)
        assert not part.ended
        await part.until(Finished)
        assert part.ended
        await other.send(messages.Failed("no such tokenizer"))
        with pytest.raises(TargetError, match="worker w: no such tokenizer"):
            await part.until(Ready)
        writer.close()
        with pytest.raises(WorkerLost, match="worker w was lost: it closed its connection"):
            await part.until(Finished)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "inprocess"], "workers load servers at URLs, and --target has inprocess"),
        (["--target", "http://h,http"], "workers load servers at URLs, and --target has http, which is in this process"),
        (["--target", "http://h", "--processes", "2"], "--processes: with --workers-listen"),
        (["--target", "http://h", "--workers-listen", "host"], "'host': write HOST:PORT"),
    ],
)
def test_a_run_that_workers_cannot_load_is_refused_in_one_line(arguments, words, call):
    found = call(main, "run", "--workers-listen", "127.0.0.1:0", *arguments, "--concurrency", "1")
    assert (found.returncode, found.stdout) == (2, "")
    assert words in found.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("token", "words"), [("", f"set {TOKEN_VARIABLE} to the token"), ("short", f"must have at least {MIN_TOKEN} characters")]
)
def test_a_worker_needs_a_token(token, words, call, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    found = call(main, "worker", "--connect", "127.0.0.1:1")
    assert found.returncode == 2
    assert words in found.stderr


@pytest.mark.anyio
async def test_no_secret_of_the_client_is_sent_to_a_worker():
    async with pool() as (opened, _, _):
        fleet = opened.fleet("http://h/v1/", "m", ClientOptions(api_key="sk-secret", headers={"X-Key": "secret"}, extra_body={"a": 1}))
        assert b"secret" not in msgspec.msgpack.encode(messages.Job(fleet.url, fleet.model, fleet.options, PLAN))
        assert fleet.options.extra_body == {"a": 1}
        with pytest.raises(TargetError, match="the URL's user and password are not sent to workers"):
            opened.fleet("http://user:secret@h/v1/", "m", ClientOptions())


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": lengths}
        for lengths in (
            Fixed(1),
            Normal(5, 1),
            LogNormal(5, 0.5),
            Empirical((1, 2)),
            Texts(texts=(Text("a", 1, 2),), lengths=Empirical((1,))),
        )
    ]
    + [{"output": AtMost(Empirical((1, 2)))}, {"turns": Fixed(2), "tenants": ("a", "b"), "timeout": 1.0}],
    ids=str,
)
def test_a_job_arrives_as_it_was_sent(changes):
    loads = (
        Load(concurrency=2, staggered=True),
        Load(pattern="steps", stairs=((1.0, 2.0),)),
        Load(pattern="trace", trace=(Arrival(0.5, 2, 3, (1,)),)),
    )
    for load in loads:
        plan = attrs.evolve(PLAN, load=load, workload=attrs.evolve(WORKLOAD, **changes))
        sent = messages.Job("http://h", "m", ClientOptions(extra_body={"a": [None, {"b": 1.5}]}), plan)
        assert messages.TO_WORKER.decode(msgspec.msgpack.encode(sent)) == sent
