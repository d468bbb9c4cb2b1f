"""Samples an engine while a point runs: ten times a second, less often in long points."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import attrs
from yarl import URL

from benchmarks.recording.machine import Machine
from benchmarks.recording.prometheus_text import parse_metrics
from benchmarks.recording.results import Sample
from llmserve import EngineManager

INTERVAL_SECONDS = 0.1
# At twice this number, every other sample is dropped and the interval doubles. A point keeps its
# shape at a bounded size.
MIN_SAMPLES = 200
# Returns the fields of a sample by name, without its point and time.
Read = Callable[[], Awaitable[dict[str, Any]]]


@attrs.define
class Monitor:
    """Samples of one point; `run` takes them until it is cancelled."""

    point: int
    read: Read
    clock: Callable[[], float] = time.monotonic
    samples: list[Sample] = attrs.field(factory=list)

    async def run(self) -> None:
        interval = INTERVAL_SECONDS
        while True:
            fields = await self.read()
            if fields:
                self.samples.append(Sample(point=self.point, time=self.clock(), **fields))
            if len(self.samples) >= 2 * MIN_SAMPLES:
                del self.samples[1::2]
                interval *= 2
            await anyio.sleep(interval)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take samples during the block; an error of the block is raised as it is."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.run)
                yield
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def since(self, origin: float) -> list[Sample]:
        """Return the samples from `origin` on; times are relative to it, sums to the first."""
        kept = [sample for sample in self.samples if sample.time >= origin]
        for name in ("host_cpu", "engine_cpu", "energy"):
            told = [sample for sample in kept if getattr(sample, name) is not None]
            first = getattr(told[0], name) if told else 0.0
            for sample in told:
                setattr(sample, name, getattr(sample, name) - first)
        for sample in kept:
            sample.time -= origin
        return kept


def manager_source(manager: EngineManager, machine: Machine) -> Read:
    metered = machine.energy() is not None

    async def read() -> dict[str, Any]:
        figures = manager.engine.statistics()
        return {
            "running": figures.running,
            "waiting": figures.waiting,
            "admission_waiting": manager.statistics().waiting,
            "kv_usage": figures.kv_usage,
            "preemptions": figures.preemptions,
            "prompt_tokens": figures.prompt_tokens,
            "generation_tokens": figures.generation_tokens,
            "prefix_queries": figures.prefix_cache_queries,
            "prefix_hits": figures.prefix_cache_hits,
            "host_cpu": time.process_time(),
            "engine_cpu": machine.engine_cpu(),
            "rss": machine.rss(),
            "vram": machine.vram(),
            "gpu": machine.gpu(),
            # NVML takes 6 ms on an H200, which would delay the requests of this event loop.
            "energy": await anyio.to_thread.run_sync(machine.energy) if metered else None,
        }

    return read


def metrics_source(session: aiohttp.ClientSession, url: URL) -> Read:
    """Read the metrics at a URL; returns no fields if the server has none."""

    async def read() -> dict[str, Any]:
        try:
            async with session.get(url, headers={"Accept": "text/plain"}) as response:
                return parse_metrics(await response.text()) if response.status == 200 else {}
        except (aiohttp.ClientError, OSError, ValueError):
            # The load itself shows that a server is gone.
            return {}

    return read
