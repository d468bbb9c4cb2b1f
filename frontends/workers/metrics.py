"""What all workers have counted, put together."""

import asyncio
import itertools
import pickle
from collections.abc import Callable, Sequence

import anyio

from frontends.workers.handle import WorkerHandle
from frontends.workers.messages import WorkerMetrics, WorkerMetricsRequest
from llmserve import MetricsSnapshot
from llmserve.admission import AdmissionStatistics

# A worker that does not tell its figures within this time is counted with its last ones.
REPORT_SECONDS = 1.0


class MetricsAggregator:
    """Asks the workers, and remembers what those that are gone have said last."""

    def __init__(self) -> None:
        self._past: list[MetricsSnapshot] = []
        self._numbers = itertools.count(1)
        self._reports: dict[int, asyncio.Event] = {}

    async def gather(
        self, handles: Sequence[WorkerHandle], admission: Callable[[], AdmissionStatistics | None], *, one_engine: bool
    ) -> MetricsSnapshot | None:
        """None if no worker has ever reported. `admission` is asked when the reports are there: what a worker said before its own is
        then in both."""
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
        """It is gone; what it has counted is not."""
        if handle.metrics is not None:
            self._past.append(handle.metrics.ended())
