"""Measures idle connections and readers that stop reading: `python -m benchmarks connections`.

Our HTTP server runs in a process of its own, over an engine that only keeps a pace. First it holds
many idle keep-alive connections. Then a few readers measure their gaps between tokens: beside many
clients that read, and beside as many that read nothing.
"""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import numpy as np
import psutil

from benchmarks.host_cost.server_processes import Server, Setting, open_server
from benchmarks.targets import TargetError

NEIGHBOURS, NEIGHBOUR_TOKENS = 16, 400
OTHERS_TOKENS = 100_000
# A small model's step on a GPU, and a text of which a few hundred fill the kernel's and the
# server's buffers for a reader.
STEP_SECONDS, TEXT = 0.02, " word" * 60
SETTLE_SECONDS = 15.0
RECEIVE_BUFFER = 4096
CONNECTING = 256


class Cost(msgspec.Struct, kw_only=True):
    """Memory in bytes, gaps in seconds."""

    idle: int
    idle_growth: int
    others: int
    stalled_growth: int
    gap_p99_beside_readers: float
    gap_p99_beside_stalled: float


async def measure(idle: int, others: int, report: Callable[[str], None]) -> Cost:
    """Run the measurement. Raises TargetError if this process may not open enough connections."""
    allow_descriptors(max(idle, others) + 256)
    # Each part has a new server: memory that one crowd freed would be reused by the next crowd and
    # not be seen.
    async with pacing_server() as (server, where):
        before = memory_of(server)
        async with _connections(*where, idle, b"", reading=True):
            await asyncio.sleep(1)
            idle_growth = memory_of(server) - before
        report(f"{idle:,} idle connections: {idle_growth / 2**20:.1f} MiB")
    async with pacing_server() as (server, where):
        before = memory_of(server)
        async with _connections(*where, others, completion_request(OTHERS_TOKENS), reading=False):
            await asyncio.sleep(SETTLE_SECONDS)
            beside_stalled = await _neighbours(*where, NEIGHBOUR_TOKENS)
            stalled_growth = memory_of(server) - before
        report(f"beside {others:,} clients that do not read: p99 gap {beside_stalled * 1000:.2f} ms, {stalled_growth / 2**20:.1f} MiB")
        async with _connections(*where, others, completion_request(OTHERS_TOKENS), reading=True):
            await asyncio.sleep(SETTLE_SECONDS)
            beside_readers = await _neighbours(*where, NEIGHBOUR_TOKENS)
        report(f"beside {others:,} clients that read: p99 gap {beside_readers * 1000:.2f} ms")
    return Cost(
        idle=idle,
        idle_growth=idle_growth,
        others=others,
        stalled_growth=stalled_growth,
        gap_p99_beside_readers=beside_readers,
        gap_p99_beside_stalled=beside_stalled,
    )


@asynccontextmanager
async def pacing_server(pace: tuple[float, str] = (STEP_SECONDS, TEXT)) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    """A server that is warmed up, with its host and port."""
    async with open_server("llmserve", Setting(core="nothing", pace=pace), 1) as server:
        await server.until_healthy()
        host, port = server.addresses["http"].removeprefix("http://").split(":")
        await _neighbours(host, int(port), tokens=32)
        yield server, (host, int(port))


def conclude(cost: Cost) -> str:
    reading, stalled = cost.gap_p99_beside_readers * 1000, cost.gap_p99_beside_stalled * 1000
    each = cost.idle_growth / cost.idle / 1024
    return (
        f"{cost.idle:,} idle connections take {cost.idle_growth / 2**20:.1f} MiB, {each:.1f} KiB each.\n"
        f"{cost.others:,} clients that do not read take {cost.stalled_growth / 2**20:.1f} MiB. The p99 gap of other readers is "
        f"{stalled / reading:.2f} times that beside as many clients that read ({stalled:.2f} and {reading:.2f} ms)."
    )


def allow_descriptors(descriptors: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < descriptors:
        raise TargetError(f"{descriptors} connections are needed, but the system allows this process only {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, descriptors), hard))


def memory_of(server: Server) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def completion_request(tokens: int) -> bytes:
    body = msgspec.json.encode({"prompt": "hi", "max_tokens": tokens, "ignore_eos": True, "stream": True})
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


@asynccontextmanager
async def _connections(host: str, port: int, count: int, request: bytes, *, reading: bool) -> AsyncIterator[None]:
    """Open connections, each of which sends a request and reads the answer or nothing."""
    async with AsyncExitStack() as stack:
        for start in range(0, count, CONNECTING):
            few = range(start, min(count, start + CONNECTING))
            opened = await asyncio.gather(*(_open(host, port, request, reading=reading) for _ in few))
            for transport in opened:
                stack.callback(transport.abort)
        yield


async def _open(host: str, port: int, request: bytes, *, reading: bool) -> asyncio.Transport:
    """Connect with a small receive window, which must be set before connecting."""
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (host, port))
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=connection)
    if not reading:
        transport.pause_reading()
    transport.write(request)
    return transport


async def _neighbours(host: str, port: int, tokens: int) -> float:
    """Read one answer per neighbour and return the 99th percentile of the gaps between events."""
    gaps = await asyncio.gather(*(_read(host, port, tokens) for _ in range(NEIGHBOURS)))
    return float(np.quantile(np.concatenate([np.diff(times) for times in gaps]), 0.99))


async def _read(host: str, port: int, tokens: int) -> Sequence[float]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(completion_request(tokens))
    times: list[float] = []
    try:
        async for line in reader:
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
            elif line.startswith(b"data: [DONE]"):
                return times
        raise TargetError("an answer was cut off")
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
