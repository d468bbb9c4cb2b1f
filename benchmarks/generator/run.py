"""Sends items at their times and keeps the records. Uses anyio, for tests in virtual time."""

import time
from collections.abc import Callable, Sequence

import anyio
import attrs

from benchmarks.recording.results import STOPPED, RequestRecord, Worker
from benchmarks.targets import Target, with_patience
from benchmarks.workload.plan import PointPlan
from benchmarks.workload.requests import Item

# Interval at which the event loop's delay is measured.
LAG_SECONDS = 0.01


@attrs.define
class Progress:
    """Progress of a job; `changed` is called after each request."""

    in_flight: int = 0
    done: int = 0
    tokens: int = 0
    ttft: float | None = None
    changed: Callable[["Progress"], None] | None = None

    def ended(self, record: RequestRecord) -> None:
        self.in_flight -= 1
        self.done += not record.lead
        self.tokens += record.completion_tokens
        if record.first_token is not None:
            self.ttft = record.first_token - record.intended
        if self.changed is not None:
            self.changed(self)


@attrs.define(kw_only=True)
class Measured:
    """What was measured of a point, also of an incomplete one.

    Attributes:
        cpu_seconds, loop_lag: As in `Point`.
        origin: The point's start, by this process's clock.
        problem: Why the point ended early, if a generator was the reason.
        workers: The processes on other hosts.
    """

    records: list[RequestRecord] = attrs.field(factory=list)
    cpu_seconds: float = 0.0
    loop_lag: float | None = None
    origin: float = 0.0
    complete: bool = False
    problem: str = ""
    workers: list[Worker] = attrs.field(factory=list)


@attrs.define
class Generator:
    """Runs one job.

    Attributes:
        measured: The measurements so far.
        clock: Returns monotonic seconds.
        cpu_clock: Returns the CPU seconds of this process.
    """

    target: Target
    job: PointPlan
    progress: Progress = attrs.field(factory=Progress)
    measured: Measured = attrs.field(factory=Measured)
    clock: Callable[[], float] = anyio.current_time
    cpu_clock: Callable[[], float] = time.process_time
    _schedule: tuple[list[float], list[Item]] | None = None
    _lags: list[float] = attrs.field(factory=list)

    def prepare(self) -> None:
        """Make all prompts before the clock starts, because that takes time."""
        self._schedule = self.job.schedule()

    async def run(self, origin: float | None = None) -> None:
        """Run all of the job's requests to their end.

        The point starts at `origin`, which generators in several processes share; None starts it
        now.
        """
        if self._schedule is None:
            self.prepare()
        times, items = self._schedule or ([], [])
        cpu = self.cpu_clock()
        self.measured.origin = self.clock() if origin is None else origin
        await anyio.sleep(max(0.0, -self._now()))
        try:
            async with anyio.create_task_group() as watch:
                watch.start_soon(self._watch_lag)
                await (self._closed_loop(items) if self.job.load.pattern == "closed" else self._open_loop(times, items))
                watch.cancel_scope.cancel()
            self.measured.complete = True
        finally:
            self.measured.cpu_seconds = self.cpu_clock() - cpu
            lags = sorted(self._lags)
            self.measured.loop_lag = lags[int(0.99 * (len(lags) - 1))] if lags else None

    async def _closed_loop(self, items: Sequence[Item]) -> None:
        """Run the clients: each sends its next request when its last one has ended."""
        work = iter(items)

        async def client() -> None:
            for item in work:
                await self._converse(item, self._now())

        async with anyio.create_task_group() as tasks:
            for _ in range(self.job.clients):
                tasks.start_soon(client)

    async def _open_loop(self, times: Sequence[float], items: Sequence[Item]) -> None:
        """Send a request at each time, regardless of earlier requests, and wait for all of them."""
        async with anyio.create_task_group() as tasks:
            for intended, item in zip(times, items, strict=True):
                if (wait := intended - self._now()) > 0:
                    await anyio.sleep(wait)
                tasks.start_soon(self._converse, item, intended)

    async def _converse(self, item: Item, intended: float) -> None:
        """Send an item and its follow-ups, until one is not answered."""
        turn, think = 0, 0.0
        while True:
            record, answer = await self._send(item, intended, turn, think)
            if not item.follow_ups or record.outcome != "ok":
                return
            # A target that returns no token ids gets as many tokens of the prompt instead. The
            # length is right; what the prefix cache holds of the answer is not (see
            # docs/benchmarks.md).
            length = record.completion_tokens
            filler = (item.prompt * (length // len(item.prompt) + 1))[:length]
            think = item.follow_ups[0].think
            item, intended, turn = item.after(answer or filler), self._now() + think, turn + 1
            if think:
                await anyio.sleep(think)

    async def _send(self, item: Item, intended: float, turn: int, think: float) -> tuple[RequestRecord, tuple[int, ...]]:
        which, of = self.job.part
        record = RequestRecord(
            point=self.job.point,
            number=which + of * len(self.measured.records),
            prompt_tokens=item.prompt_tokens,
            wanted_tokens=item.max_tokens,
            intended=intended,
            tenant=item.tenant,
            priority=item.priority,
            adapter=item.adapter,
            turn=turn,
            think=think,
            lead=item.lead,
            dispatched=self._now(),
        )
        self.measured.records.append(record)
        self.progress.in_flight += 1
        try:
            answer = await with_patience(self.target, item, record, self._now, self.measured.origin)
        finally:
            if record.finished is None:
                record.outcome, record.detail, record.finished = "cancelled", STOPPED, self._now()
            self.progress.ended(record)
        return record, answer

    async def _watch_lag(self) -> None:
        while True:
            due = self.clock() + LAG_SECONDS
            await anyio.sleep(LAG_SECONDS)
            self._lags.append(self.clock() - due)

    def _now(self) -> float:
        return self.clock() - self.measured.origin
