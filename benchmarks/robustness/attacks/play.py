"""Runs rows against a server, with a canary before, during and after the attack."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import attrs
import msgspec
import psutil

from benchmarks.host_cost.server_processes import Server, Setting, open_server
from benchmarks.recording.machine import resident
from benchmarks.robustness.attacks.attackers import Attack, AttackCounts
from benchmarks.robustness.attacks.rows import Row
from benchmarks.robustness.attacks.verdict import Played, broken, figures
from benchmarks.robustness.canary import running_canary
from benchmarks.targets import TargetError

LOOK_SECONDS = 0.1
SETTLE_SECONDS = 2.0
# A canary that waits longer has failed. It takes 0.05 s on the simulated engine, 0.5 s on a real
# one on a CPU.
CANARY_PATIENCE = 5.0
CANARY_CONCURRENCY = 2
# The simulated engine holds 64 sequences of 2,048 tokens together. With its default size, a row's
# open streams would leave the canary no slot or no cache. The canary would then measure the wait
# for admission.
ROOM = {"max_num_seqs": 64, "block_size": 16, "num_blocks": 64 * 2048 // 16}


@attrs.frozen(kw_only=True)
class Options:
    """What to attack and how.

    Attributes:
        url: A running server; None starts servers.
        engine: Engine of the servers that are started.
        seconds: Duration of each phase.
        rise: Bound on the increase of the canary's worst latency, in seconds.
    """

    url: str | None = None
    engine: str = "simulated"
    model: str = "bundled"
    engine_args: dict[str, object] = attrs.field(factory=dict)
    server_args: tuple[str, ...] = ()
    attackers: int = 8
    seconds: float = 5.0
    rise: float = 0.1


class Attacks(msgspec.Struct, kw_only=True):
    rows: list[Played]


@attrs.frozen
class Target:
    """A server under attack; `process` is None if the server is on another machine."""

    host: str
    port: int
    process: psutil.Process | None

    def resident(self) -> int | None:
        """Return the resident size of all the server's processes in bytes."""
        if self.process is None:
            return None
        with suppress(psutil.Error):
            return resident([self.process, *self.process.children(recursive=True)])
        return 0


async def measure(rows: Sequence[Row], options: Options, begin: Callable[[Row], None], end: Callable[[Played], None]) -> Attacks:
    """Run the rows; calls `begin` and `end` for each.

    Raises TargetError when a server does not start or cannot be reached.
    """
    found = Attacks(rows=[])
    for row in rows:
        if reason := skipped(row, options):
            played = Played(number=row.number, name=row.name, skipped=reason)
        else:
            begin(row)
            async with opened(row, options) as target:
                played = await play(row, target, options)
        end(played)
        found.rows.append(played)
    return found


def skipped(row: Row, options: Options) -> str | None:
    """Return why a row cannot be run, or None."""
    if options.url and row.own_server:
        return "the row needs a server started by this command"
    if row.real_engine and not options.url and options.engine == "simulated":
        return "the row needs a real engine (--engine vllm)"
    return None


@asynccontextmanager
async def opened(row: Row, options: Options) -> AsyncIterator[Target]:
    if options.url:
        parts = urlsplit(options.url)
        if parts.scheme != "http" or not parts.hostname:
            raise TargetError(f"{options.url!r}: write http://HOST:PORT")
        port = parts.port or 80
        yield Target(parts.hostname, port, _listening(port))
        return
    setting = Setting(
        core="simulated" if options.engine == "simulated" else "real",
        model=options.model,
        engine_args=(ROOM if options.engine == "simulated" else {}) | options.engine_args,
        server_args=(*row.server, *options.server_args),
    )
    name, wire = ("llmserve-socket", "tcp") if row.wire == "socket" else ("llmserve", "http")
    pipe = os.pipe() if row.unread else None
    try:
        async with open_server(name, setting, 1, stdout=pipe[1] if pipe else None) as server:
            await server.until_healthy()
            yield _target(server, wire)
    finally:
        for end in pipe or ():
            os.close(end)


def _target(server: Server, wire: str) -> Target:
    parts = urlsplit(server.addresses[wire])
    assert parts.hostname is not None
    assert parts.port is not None
    return Target(parts.hostname, parts.port, psutil.Process(server.process.pid))


def _listening(port: int) -> psutil.Process | None:
    """Return this machine's process that listens on the port, the oldest if there are several."""
    listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    pids = [one.pid for one in listening if one.pid and one.laddr and one.laddr.port == port]
    return psutil.Process(min(pids)) if pids else None


async def play(row: Row, target: Target, options: Options) -> Played:
    tally, marks = AttackCounts(), [0]
    count = row.attackers or options.attackers
    async with running_canary(target.host, target.port, row.wire, CANARY_CONCURRENCY, CANARY_PATIENCE) as canary:
        # Wait until one-time allocations have happened.
        await asyncio.sleep(options.seconds)
        before, quiet = target.resident(), await _phase(options.seconds)
        control = None
        if row.controlled and row.attack.control is not None:
            control = await _attack(row.attack.control, target, count, options.seconds, AttackCounts())
            await asyncio.sleep(SETTLE_SECONDS)
        watching = asyncio.create_task(_watch(target, marks))
        beside = await _attack(row.attack, target, count, options.seconds, tally)
        watching.cancel()
        await asyncio.sleep(SETTLE_SECONDS)
        after = await _phase(options.seconds)
        left = target.resident()
    played = Played(
        number=row.number,
        name=row.name,
        attackers=count,
        before=figures(canary, *quiet, within=True),
        control=figures(canary, *control) if control else None,
        beside=figures(canary, *beside),
        after=figures(canary, *after),
        resident_before=before,
        resident_most=max(marks) if before is not None else None,
        resident_after=left,
        answers=dict(tally.answers),
        longest=tally.longest,
    )
    played.broken = broken(played, row, options.rise)
    return played


async def _phase(seconds: float) -> tuple[float, float]:
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    return began, time.perf_counter()


async def _attack(attack: Attack, target: Target, count: int, seconds: float, tally: AttackCounts) -> tuple[float, float]:
    """Attack, and return when the attack began and when the last attacker had finished."""
    began = time.perf_counter()
    await asyncio.gather(*(attack.attack(target.host, target.port, began + seconds, tally) for _ in range(count)))
    return began, time.perf_counter()


async def _watch(target: Target, marks: list[int]) -> None:
    while True:
        marks.append(target.resident() or 0)
        await asyncio.sleep(LOOK_SECONDS)
