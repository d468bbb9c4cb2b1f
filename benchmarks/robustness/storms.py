"""Thousands of malicious clients at a time: `python -m benchmarks storms`.

Our HTTP server runs in a process of its own, over an engine that only keeps a pace. A canary
repeatedly asks it for eight tokens, before and during each attack. Each attack reports the canary's
delay, the time until the server has closed the last attacker's connection, and the attackers'
memory.
"""

import asyncio
import math
import socket
import struct
import time
from collections.abc import Awaitable, Callable

import attrs
import msgspec

from benchmarks.host_cost.server_processes import Server
from benchmarks.robustness.canary import running_canary
from benchmarks.robustness.connections import (
    OTHERS_TOKENS,
    RECEIVE_BUFFER,
    STEP_SECONDS,
    TEXT,
    allow_descriptors,
    completion_request,
    memory_of,
    pacing_server,
)

QUIET_SECONDS = 5.0
CONNECTING = 256
# The server tolerates an attacker for at most 30 s: for a body, or for a reader from the moment
# when all buffers are full.
LONGEST_SECONDS = 120.0
# For 5000 readers this is 50,000 tokens a second, a lot for a GPU, and enough bytes to fill all
# buffers in 15 s.
SLOW_PACE = 0.1, " word" * 300
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Attack(msgspec.Struct, kw_only=True):
    """One attack, in seconds and bytes.

    Attributes:
        opened: Time until all attackers were connected.
        coming: Longest wait of the canary during that time.
        gone_after: Time from the last attacker's arrival until the last attacker's end.
        canary_p50: Median wait of the canary after the arrival.
        canary_p99: 99th percentile of that wait.
        canary_failures: Failed requests of the canary.
        growth: Largest increase of the server's memory.
    """

    name: str
    clients: int
    opened: float
    coming: float
    gone_after: float | None
    quiet_p50: float
    quiet_p99: float
    canary_p50: float
    canary_p99: float
    canary_failures: int
    growth: int


class Storms(msgspec.Struct, kw_only=True):
    attacks: list[Attack]


@attrs.define
class Attacker(asyncio.Protocol):
    """Sends `at_once`, then a byte of `bit_by_bit` a second; `gone` is set at its end."""

    at_once: bytes
    bit_by_bit: bytes
    reads: bool
    gone: asyncio.Event = attrs.field(factory=asyncio.Event)
    transport: asyncio.Transport = attrs.field(init=False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.at_once)
        if not self.reads:
            transport.pause_reading()
        if self.bit_by_bit:
            self._next(0)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()

    def _next(self, number: int) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.bit_by_bit[number % len(self.bit_by_bit)].to_bytes(1, "big"))
            asyncio.get_running_loop().call_later(1.0, self._next, number + 1)


@attrs.frozen
class Kind:
    """One kind of attack by connections that stay open."""

    name: str
    at_once: bytes
    bit_by_bit: bytes = b""
    reads: bool = True
    # Whether the server is expected to end the connections. Idle ones after a request may stay.
    ends: bool = True
    pace: tuple[float, str] = (STEP_SECONDS, TEXT)


KINDS = (
    Kind("idle after a request", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", ends=False),
    Kind("silent", b""),
    Kind("a header's byte a second", b"GET /health/live HTTP/1.1\r\n", b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    Kind("no body", HEAD + b"Content-Length: 1000\r\n\r\n"),
    Kind("a body's byte a second", HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
    Kind("streams that are not read", completion_request(OTHERS_TOKENS), reads=False, pace=SLOW_PACE),
)


Storm = Callable[[str, int, int], Awaitable[tuple[float, float | None]]]


async def measure(idle: int, clients: int, report: Callable[[str], None]) -> Storms:
    """Run all attacks. Raises TargetError if this process may not open enough connections."""
    allow_descriptors(max(idle, clients) + 256)
    usual = STEP_SECONDS, TEXT
    storms: list[tuple[str, int, Storm, tuple[float, str]]] = [
        (kind.name, clients if kind.ends else idle, _held(kind), kind.pace) for kind in KINDS
    ]
    storms += [("connections that come at once", idle, _connect, usual), ("connections that are reset at once", idle, _reset, usual)]
    attacks = []
    quiet: dict[float, tuple[float, float]] = {}
    for name, count, storm, pace in storms:
        async with pacing_server(pace) as (server, where):
            if pace[0] not in quiet:
                quiet[pace[0]] = await _quiet(*where)
            attacks.append(await _attack(name, count, storm, server, where, quiet[pace[0]]))
        report(_line(attacks[-1]))
    return Storms(attacks=attacks)


async def _quiet(host: str, port: int) -> tuple[float, float]:
    async with running_canary(host, port) as canary:
        await asyncio.sleep(QUIET_SECONDS)
    return canary.figures()


async def _attack(name: str, count: int, storm: Storm, server: Server, where: tuple[str, int], quiet: tuple[float, float]) -> Attack:
    before, most = memory_of(server), 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, memory_of(server))
            await asyncio.sleep(0.25)

    async with running_canary(*where) as canary:
        watching = asyncio.create_task(watch())
        began = time.perf_counter()
        try:
            opened, gone = await storm(*where, count)
            # The canary goes on through the attackers' end.
            await asyncio.sleep(1.0)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
    here = began + opened
    # Attackers that may stay are ended by this benchmark, so their end is not measured.
    p50, p99 = canary.figures(here, here + QUIET_SECONDS if gone is None else math.inf)
    return Attack(
        name=name,
        clients=count,
        opened=opened,
        coming=canary.longest(here),
        gone_after=gone,
        quiet_p50=quiet[0],
        quiet_p99=quiet[1],
        canary_p50=p50,
        canary_p99=p99,
        canary_failures=canary.failures,
        growth=most - before,
    )


def _held(kind: Kind) -> Storm:
    async def storm(host: str, port: int, count: int) -> tuple[float, float | None]:
        began = time.perf_counter()
        attackers: list[Attacker] = []
        for start in range(0, count, CONNECTING):
            few = min(CONNECTING, count - start)
            attackers += await asyncio.gather(*(_open(host, port, kind) for _ in range(few)))
        opened = time.perf_counter()
        try:
            if not kind.ends:
                await asyncio.sleep(QUIET_SECONDS)
                return opened - began, None
            for attacker in attackers:
                if kind.reads:
                    await asyncio.wait_for(attacker.gone.wait(), LONGEST_SECONDS)
            if not kind.reads:
                await _until_none(port, LONGEST_SECONDS)
            return opened - began, time.perf_counter() - opened
        except TimeoutError:
            return opened - began, math.inf
        finally:
            for attacker in attackers:
                attacker.transport.abort()

    return storm


async def _open(host: str, port: int, kind: Kind) -> Attacker:
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (host, port))
    _, attacker = await loop.create_connection(lambda: Attacker(kind.at_once, kind.bit_by_bit, kind.reads), sock=connection)
    return attacker


async def _connect(host: str, port: int, count: int) -> tuple[float, float | None]:
    """Connect all clients at the same time; each gets an answer."""
    began = time.perf_counter()

    async def one() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()

    await asyncio.gather(*(one() for _ in range(count)))
    seconds = time.perf_counter() - began
    return seconds, 0.0


async def _reset(host: str, port: int, count: int) -> tuple[float, float | None]:
    """Connect, begin a request and reset the connection."""
    began = time.perf_counter()
    loop = asyncio.get_running_loop()

    async def one() -> None:
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(connection, (host, port))
            connection.send(HEAD)

    for start in range(0, count, CONNECTING):
        await asyncio.gather(*(one() for _ in range(min(CONNECTING, count - start))))
    opened = time.perf_counter()
    await _until_none(port, LONGEST_SECONDS)
    return opened - began, time.perf_counter() - opened


async def _until_none(port: int, seconds: float) -> None:
    """Wait until the server has no connection but the canary's. Raises TimeoutError.

    The kernel counts them, because a client that does not read is not notified of the end.
    """
    async with asyncio.timeout(seconds):
        while await asyncio.to_thread(_established, port) > 2:  # noqa: ASYNC110 - the kernel sends no event
            await asyncio.sleep(0.5)


def _established(port: int) -> int:
    """Count a local server's connections in /proc; asking for all sockets takes seconds."""
    wanted, found = f":{port:04X}", 0
    with open("/proc/net/tcp") as lines:
        for line in lines:
            fields = line.split()
            found += fields[1].endswith(wanted) and fields[3] == "01"
    return found


def _line(attack: Attack) -> str:
    gone = "" if attack.gone_after is None else f"; all gone after {attack.gone_after:.1f} s"
    failures = f", {attack.canary_failures} failures" if attack.canary_failures else ""
    later = f"canary p50 {(attack.canary_p50 - attack.quiet_p50) * 1e3:+.0f} ms, p99 {(attack.canary_p99 - attack.quiet_p99) * 1e3:+.0f} ms"
    coming = f"connected in {attack.opened:.1f} s, canary at most {(attack.coming - attack.quiet_p50) * 1e3:+.0f} ms"
    return (
        f"{attack.clients:,}, {attack.name}: {coming}{gone}; afterwards {later}{failures}; memory at most {attack.growth / 2**20:+.0f} MiB"
    )


def conclude(found: Storms) -> str:
    return "\n".join(map(_line, found.attacks))
