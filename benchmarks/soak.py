"""A million requests through one manager: `python -m benchmarks soak`. What grows that should not: memory, tasks, file descriptors, series.

Most are whole answers in process. A tenth is left at some moment, a twentieth cannot be answered, a hundredth is read slowly, one in twenty
goes over HTTP, where half of them ask for what there is not. Each has a tenant of its own.
"""

import asyncio
import gc
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec
import psutil

from benchmarks.targets.here import serve_here
from llmserve import EngineManager, GenerationRequest, LLMServeError, Sampling
from llmserve.exporters import prometheus

TOKENS = 4
LONGEST_SECONDS = 0.02
SLOW_SECONDS = 0.01
# After it, what is allocated once has been.
PARTS, WARM_PARTS = 10, 2


class Sample(msgspec.Struct, kw_only=True):
    """After so many requests, none of which is open: bytes, and how many."""

    requests: int
    rss: int
    tasks: int
    descriptors: int
    series: int


class Soak(msgspec.Struct, kw_only=True):
    """`ends` by what callers saw."""

    seconds: float
    ends: dict[str, int]
    samples: list[Sample]

    @property
    def growth(self) -> float:
        """Bytes of memory for a request, after the warm parts."""
        first, last = self.samples[WARM_PARTS - 1], self.samples[-1]
        return (last.rss - first.rss) / (last.requests - first.requests)


class Client:
    """One after another, each of a kind that its own dice choose."""

    def __init__(self, manager: EngineManager, session: aiohttp.ClientSession, seed: int, ends: Counter[str]) -> None:
        self._manager = manager
        self._session = session
        self._rng = random.Random(f"soak {seed}")
        self._ends = ends

    async def ask(self) -> None:
        dice = self._rng.random()
        kind = (
            self._left
            if dice < 0.10
            else self._bad
            if dice < 0.15
            else self._slow
            if dice < 0.16
            else self._http
            if dice < 0.21
            else self._whole
        )
        try:
            self._ends[await kind()] += 1
        except LLMServeError as error:
            self._ends[type(error).__name__] += 1

    def _request(self, **sampling: Any) -> GenerationRequest:
        wanted = Sampling(**({"max_tokens": TOKENS, "ignore_eos": True} | sampling))
        return GenerationRequest("Once upon a time", tenant=f"tenant {self._rng.random()}", sampling=wanted)

    async def _whole(self) -> str:
        await self._manager.generate(self._request())
        return "answered"

    async def _left(self) -> str:
        task = asyncio.create_task(self._whole())
        await asyncio.wait([task], timeout=self._rng.random() * LONGEST_SECONDS)
        task.cancel()
        with suppress(asyncio.CancelledError):
            return await task
        return "left"

    async def _bad(self) -> str:
        await self._manager.generate(self._request(max_tokens=10**6))
        return "answered"

    async def _slow(self) -> str:
        async with self._manager.stream(self._request()) as stream:
            async for _ in stream:
                await asyncio.sleep(SLOW_SECONDS)
        return "answered slowly"

    async def _http(self) -> str:
        body: dict[str, Any] = {"prompt": "hi", "max_tokens": TOKENS, "user": f"user {self._rng.random()}"}
        if self._rng.random() < 0.5:
            body["model"] = f"model {self._rng.random()}"
        async with self._session.post("/v1/completions", json=body, headers={"X-Request-Id": f"id-{self._rng.random()}"}) as response:
            await response.read()
            return f"HTTP {response.status}"


async def measure(manager: EngineManager, requests: int, at_once: int, seed: int, report: Callable[[str], None]) -> Soak:
    ends: Counter[str] = Counter()
    samples = []
    began = time.perf_counter()
    async with manager, serve_here(manager, "model") as url, aiohttp.ClientSession(url) as session:
        clients = [Client(manager, session, seed * at_once + number, ends) for number in range(at_once)]
        for part in range(1, PARTS + 1):
            numbers = iter(range(requests // PARTS))

            async def work(client: Client, numbers: Any = numbers) -> None:
                for _ in numbers:
                    await client.ask()

            await asyncio.gather(*(work(client) for client in clients))
            while manager.statistics().open:  # noqa: ASYNC110 - a figure has no event
                await asyncio.sleep(0.01)
            samples.append(_sample(manager, requests // PARTS * part))
            report(_line(samples[-1]))
    return Soak(seconds=time.perf_counter() - began, ends=dict(ends), samples=samples)


def _sample(manager: EngineManager, requests: int) -> Sample:
    gc.collect()
    text, _ = prometheus.render(manager.facts(), time.monotonic(), "text/plain")
    return Sample(
        requests=requests,
        rss=psutil.Process(os.getpid()).memory_info().rss,
        tasks=len(asyncio.all_tasks()),
        descriptors=len(os.listdir("/proc/self/fd")),
        series=sum(not line.startswith(b"#") for line in text.splitlines()),
    )


def _line(sample: Sample) -> str:
    return (
        f"{sample.requests:,}: {sample.rss / 2**20:.1f} MiB, {sample.tasks} tasks, {sample.descriptors} descriptors, {sample.series} series"
    )


def conclude(found: Soak) -> str:
    ends = ", ".join(f"{count:,} {name}" for name, count in sorted(found.ends.items()))
    growth = f"{found.growth:.1f} bytes of memory a request after the first parts"
    return f"{sum(found.ends.values()):,} requests in {found.seconds:.0f} s: {ends}\n{growth}"
