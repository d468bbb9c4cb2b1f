"""Sends requests of every kind for an hour: `python -m benchmarks soak --seconds 3600`.

Reports growth of memory, tasks, file descriptors and metric series. The slope of the resident size
is a least-squares line over the samples after the first third, in which caches fill and one-time
allocations happen. Each sample is taken while no request is open. The clients live in the same
process, so what they keep counts too.
"""

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence

import aiohttp
import attrs
import msgspec
import numpy as np
import psutil

from benchmarks.robustness.soak_clients import Client
from benchmarks.targets.local_server import connect, serve_here, serve_sockets_here
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.observability import prometheus

PARTS = 60
WARM_SHARE = 1 / 3
# Memory for answers with an Idempotency-Key, so small that the first thousand requests fill it, not
# the first two million.
KEEP_BYTES = 2**18
# Bytes per request: one MiB for 100,000 requests.
MAX_GROWTH = 2**20 / 1e5
# Quantile of a normal distribution for 95 %, because there are 40 samples.
INTERVAL = 1.96


@attrs.frozen(kw_only=True)
class Length:
    """The length of a soak: a number of requests, or a duration in seconds."""

    requests: int = 1_000_000
    seconds: float | None = None

    def parts(self) -> "list[Length]":
        seconds = None if self.seconds is None else self.seconds / PARTS
        return [Length(requests=max(1, self.requests // PARTS), seconds=seconds)] * PARTS


class Sample(msgspec.Struct, kw_only=True):
    """Sizes and counts after a number of requests, none of which is open."""

    requests: int
    rss: int
    tasks: int
    descriptors: int
    series: int


class Slope(msgspec.Struct, kw_only=True):
    """Bytes per request, and half of the 95 % interval."""

    slope: float
    margin: float

    def __str__(self) -> str:
        share = 1e5 / 2**20
        return f"{self.slope * share:+.2f} MiB per 100,000 requests (95 %: ±{self.margin * share:.2f})"


class Soak(msgspec.Struct, kw_only=True):
    """The result of a soak; `ends` counts how requests ended for their callers."""

    seconds: float
    ends: dict[str, int]
    samples: list[Sample]

    @property
    def growth(self) -> Slope:
        """Growth of the resident size after the first third."""
        warm = self.samples[int(len(self.samples) * WARM_SHARE) :]
        return slope([sample.requests for sample in warm], [sample.rss for sample in warm])

    @property
    def level(self) -> bool:
        return self.growth.slope <= MAX_GROWTH


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope:
    """Fit a least-squares line through three or more points at different places."""
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    spread = x - x.mean()
    squares = float((spread**2).sum())
    found = float((spread * (y - y.mean())).sum()) / squares
    rest = y - y.mean() - found * spread
    error = (float((rest**2).sum()) / (len(x) - 2) / squares) ** 0.5
    return Slope(slope=found, margin=INTERVAL * error)


def config(at_once: int) -> ManagerConfig:
    """Return limits by which some of `at_once` clients are refused."""
    return ManagerConfig(admission=AdmissionConfig(max_running=max(1, at_once // 2), max_waiting=max(1, at_once // 4)))


async def measure(manager: EngineManager, length: Length, at_once: int, seed: int, report: Callable[[str], None]) -> Soak:
    """Run a soak; `manager` must have the limits of `config(at_once)`."""
    ends: Counter[str] = Counter()
    samples: list[Sample] = []
    began = time.perf_counter()
    async with (
        manager,
        serve_here(manager, "model", KEEP_BYTES) as url,
        serve_sockets_here(manager, "model", ["tcp://127.0.0.1:0"]) as (address,),
        connect(address) as socket,
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        clients = [Client(manager, session, socket, seed * at_once + number, ends) for number in range(at_once)]
        for part in length.parts():
            await _run(clients, part)
            while manager.statistics().open:  # noqa: ASYNC110 - a figure has no event
                await asyncio.sleep(0.01)
            samples.append(_sample(manager, sum(ends.values())))
            report(_line(samples[-1], time.perf_counter() - began))
    return Soak(seconds=time.perf_counter() - began, ends=dict(ends), samples=samples)


async def _run(clients: Sequence[Client], part: Length) -> None:
    until = time.perf_counter() + part.seconds if part.seconds is not None else None
    numbers = iter(range(part.requests))

    async def work(client: Client) -> None:
        while time.perf_counter() < until if until is not None else next(numbers, None) is not None:
            await client.ask()

    await asyncio.gather(*map(work, clients))


def _sample(manager: EngineManager, requests: int) -> Sample:
    gc.collect()
    text, _ = prometheus.render(manager.metrics_snapshot(), time.monotonic(), "text/plain")
    return Sample(
        requests=requests,
        rss=psutil.Process(os.getpid()).memory_info().rss,
        tasks=len(asyncio.all_tasks()),
        descriptors=len(os.listdir("/proc/self/fd")),
        series=sum(not line.startswith(b"#") for line in text.splitlines()),
    )


def _line(sample: Sample, seconds: float) -> str:
    figures = f"{sample.tasks} tasks, {sample.descriptors} descriptors, {sample.series} series"
    return f"{seconds:.0f} s, {sample.requests:,} requests: {sample.rss / 2**20:.1f} MiB, {figures}"


def conclude(found: Soak) -> str:
    ends = ", ".join(f"{count:,} {name}" for name, count in sorted(found.ends.items()))
    verdict = "level" if found.level else "GROWS"
    return (
        f"{sum(found.ends.values()):,} requests in {found.seconds:.0f} s: {ends}\n"
        f"resident size after the first third: {found.growth}: {verdict} (bound {MAX_GROWTH * 1e5 / 2**20:g} MiB)"
    )
