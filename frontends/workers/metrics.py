"""Aggregates the metrics of all workers."""

import asyncio
import itertools
import pickle
from collections.abc import Callable, Sequence

import anyio

from frontends.workers.handle import WorkerHandle
from frontends.workers.messages import WorkerMetrics, WorkerMetricsRequest
from llmserve import MetricsSnapshot
from llmserve.admission import AdmissionStatistics

# Maximum seconds to wait for a worker's metrics; afterwards its last ones are used.
REPORT_SECONDS = 1.0


class MetricsAggregator:
    """Requests the workers' metrics, and keeps the last metrics of dead workers."""

    def __init__(self) -> None:
        self._past: list[MetricsSnapshot] = []
        self._numbers = itertools.count(1)
        self._reports: dict[int, asyncio.Event] = {}

    async def gather(
        self, handles: Sequence[WorkerHandle], admission: Callable[[], AdmissionStatistics | None], *, one_engine: bool
    ) -> MetricsSnapshot | None:
        """Return the metrics of all workers; None if no worker has ever reported.

        `admission` is called after the reports have arrived, so that it includes all earlier
        messages of the workers.
        """
        async with anyio.create_task_group() as tasks:
            for handle in handles:
                tasks.start_soon(self._ask, handle)
        parts = [handle.metrics for handle in handles if handle.metrics is not None]
        return MetricsSnapshot.together([*parts, *self._past], admission(), one_engine=one_engine) if parts else None

    async def _ask(self, handle: WorkerHandle) -> None:
        number = next(self._numbers)
        answered = self._reports[number] = asyncio.Event()
        handle.channel.send(WorkerMetricsRequest(number))
        with anyio.move_on_after(REPORT_SECONDS):
            await answered.wait()
        self._reports.pop(number, None)

    def receive(self, handle: WorkerHandle, report: WorkerMetrics) -> None:
        handle.metrics = pickle.loads(report.metrics)  # noqa: S301 - from a process that this one started
        if report.number in self._reports:
            self._reports.pop(report.number).set()

    def forget(self, handle: WorkerHandle) -> None:
        """Keep the last metrics of a worker that has ended."""
        if handle.metrics is not None:
            self._past.append(handle.metrics.ended())
