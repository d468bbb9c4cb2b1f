"""A client that repeatedly asks for eight tokens, to show an attack's effect on others.

Beside its requests, a probe asks a route that does no work, on one open connection. The probe's
latency is the time until the server's event loop runs it, so it reveals a blocked loop from outside
the server.
"""

import asyncio
import math
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Literal

import attrs
import msgspec
import numpy as np

from benchmarks.targets import TargetError
from llmserve import GenerationRequest, LLMServeError, Sampling

# The pause between two requests; a request's tokens take eight of the engine's steps.
CANARY_SECONDS, CANARY_TOKENS = 0.05, 8
PROBE_SECONDS = 0.02
CONCURRENCY = 4
# A request or a probe that takes longer has failed.
PATIENCE_SECONDS = 30.0
# The canary is a tenant of its own, so it measures what admission leaves to other tenants.
SONG = msgspec.json.encode({"prompt": "hi", "max_tokens": CANARY_TOKENS, "ignore_eos": True, "stream": True, "user": "canary"})
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
PROBE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

# Exceptions for a lost connection, an invalid answer and a refusal.
FAILURES = (OSError, EOFError, ValueError, asyncio.LimitOverrunError, LLMServeError, TargetError)

Timed = tuple[float, float]
Wire = Literal["http", "socket"]


@attrs.define
class Canary:
    """Asks on a new connection each time.

    Attributes:
        concurrency: Number of concurrent requests.
        samples: Start and duration in seconds of each request that succeeded.
        failed: Start and duration of each request that failed.
        probes: Start and duration of each probe.
    """

    host: str
    port: int
    wire: Wire = "http"
    concurrency: int = CONCURRENCY
    patience: float = PATIENCE_SECONDS
    samples: list[Timed] = attrs.field(factory=list)
    failed: list[Timed] = attrs.field(factory=list)
    probes: list[Timed] = attrs.field(factory=list)

    @property
    def failures(self) -> int:
        return len(self.failed)

    async def run(self, enough: Connection) -> None:
        """Send concurrent requests and probe, until a message arrives on the pipe."""
        ask, probe = (self._ask, self._probe) if self.wire == "http" else (self._ask_socket, self._probe_socket)
        tasks = [asyncio.create_task(self._voice(ask)) for _ in range(self.concurrency)]
        tasks.append(asyncio.create_task(self._probing(probe)))
        await asyncio.to_thread(enough.recv)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _voice(self, ask: Callable[[], Awaitable[None]]) -> None:
        while True:
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self.patience):
                    await ask()
                self.samples.append((began, time.perf_counter() - began))
            except FAILURES:
                self.failed.append((began, time.perf_counter() - began))
            await asyncio.sleep(CANARY_SECONDS)

    async def _probing(self, probe: Callable[[], Awaitable[None]]) -> None:
        """Probe on one connection, reopened when it is lost.

        A probe without an answer counts with the time that it waited.
        """
        while True:
            try:
                await probe()
            except FAILURES:
                await asyncio.sleep(CANARY_SECONDS)

    @asynccontextmanager
    async def _timed_probe(self) -> AsyncIterator[None]:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.patience):
                yield
        finally:
            self.probes.append((began, time.perf_counter() - began))
        await asyncio.sleep(PROBE_SECONDS)

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(HEAD % len(SONG) + SONG)
            status = await reader.readline()
            if b" 200 " not in status:
                raise EOFError(f"answered {status!r}")
            await reader.readuntil(b"data: [DONE]")
        finally:
            writer.close()

    async def _probe(self) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            while True:
                async with self._timed_probe():
                    writer.write(PROBE)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length))
        finally:
            writer.close()

    async def _ask_socket(self) -> None:
        from benchmarks.targets.socket import open_client

        async with open_client(f"tcp://{self.host}:{self.port}") as client:
            await client.generate(GenerationRequest("hi", tenant="canary", sampling=Sampling(max_tokens=CANARY_TOKENS, ignore_eos=True)))

    async def _probe_socket(self) -> None:
        from benchmarks.targets.socket import open_client

        async with open_client(f"tcp://{self.host}:{self.port}") as client:
            while True:
                async with self._timed_probe():
                    await client.ping()

    def figures(self, since: float = 0.0, until: float = math.inf) -> tuple[float, float]:
        """Return p50 and p99 of the requests that began and ended within the span."""
        seconds = [seconds for began, seconds in self.samples if began >= since and began + seconds <= until] or [math.nan]
        return float(np.quantile(seconds, 0.5)), float(np.quantile(seconds, 0.99))

    def longest(self, until: float) -> float:
        """Return the longest duration of the requests that began before `until`."""
        return max((seconds for began, seconds in self.samples if began < until), default=0.0)


@asynccontextmanager
async def running_canary(
    host: str, port: int, wire: Wire = "http", concurrency: int = CONCURRENCY, patience: float = PATIENCE_SECONDS
) -> AsyncIterator[Canary]:
    """Run a canary in a process of its own, where the attackers' work does not delay it.

    Its samples are available at the end.
    """
    canary = Canary(host, port, wire, concurrency, patience)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run_canary, args=(canary, theirs), daemon=True)
    process.start()
    await asyncio.to_thread(ours.recv)
    try:
        yield canary
    finally:
        ours.send(None)
        canary.samples, canary.failed, canary.probes = await asyncio.to_thread(ours.recv)
        process.join()


def _run_canary(canary: Canary, pipe: Connection) -> None:
    pipe.send(None)
    asyncio.run(canary.run(pipe))
    pipe.send((canary.samples, canary.failed, canary.probes))
