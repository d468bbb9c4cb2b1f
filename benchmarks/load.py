"""Makes load: sends items at their times and keeps the records. Speaks anyio, so that tests run it on a virtual clock."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import anyio
import attrs

from benchmarks.results import Point, RequestRecord
from benchmarks.targets import Target, with_patience
from benchmarks.workloads import Item


@attrs.define
class Progress:
    """What is going on, for whoever shows it; `changed` is called after every end of a request."""

    changed: Callable[["Progress"], None] = lambda progress: None
    in_flight: int = 0
    done: int = 0
    tokens: int = 0
    ttft: float | None = None

    def began(self) -> None:
        self.in_flight += 1

    def ended(self, record: RequestRecord) -> None:
        self.in_flight -= 1
        self.done += 1
        self.tokens += record.completion_tokens
        if record.first_token is not None:
            self.ttft = record.first_token - record.intended
        self.changed(self)


@attrs.define
class Generator:
    """Runs one point. `records` holds what was measured so far, also when the point is cut short."""

    target: Target
    point: Point
    progress: Progress = attrs.field(factory=Progress)
    records: list[RequestRecord] = attrs.field(factory=list)
    _origin: float = 0.0

    async def closed_loop(self, items: Iterator[Item], requests: int) -> None:
        """`point.concurrency` clients, each sending its next request when its last one has ended; `requests` in all."""
        work = itertools.islice(items, requests)

        async def client() -> None:
            for item in work:
                await self._send(item, self._now())

        with self._timing():
            async with anyio.create_task_group() as tasks:
                for _ in range(self.point.concurrency or 1):
                    tasks.start_soon(client)
        self.point.complete = True

    async def open_loop(self, items: Iterator[Item], arrivals: Iterable[float], seconds: float) -> None:
        """A request at each of `arrivals` before `seconds`, whatever became of those before it; waits for all of them."""
        with self._timing():
            async with anyio.create_task_group() as tasks:
                for intended, item in zip(arrivals, items, strict=False):
                    if intended >= seconds:
                        break
                    await anyio.sleep(max(0.0, intended - self._now()))
                    tasks.start_soon(self._send, item, intended)
        self.point.complete = True

    async def _send(self, item: Item, intended: float) -> None:
        record = RequestRecord(
            point=self.point.number,
            number=len(self.records),
            prompt_tokens=len(item.prompt),
            wanted_tokens=item.max_tokens,
            intended=intended,
            dispatched=self._now(),
        )
        self.records.append(record)
        self.progress.began()
        try:
            await with_patience(self.target, item, record, self._now, self._origin)
        finally:
            if record.finished is None:
                record.outcome, record.detail, record.finished = "cancelled", "the run was cut short", self._now()
            self.progress.ended(record)

    def _now(self) -> float:
        return anyio.current_time() - self._origin

    @contextmanager
    def _timing(self) -> Iterator[None]:
        """Sets the point's start, and takes its length and the client's CPU time, however it ends."""
        cpu = time.process_time()
        self._origin = anyio.current_time()
        try:
            yield
        finally:
            self.point.seconds = self._now()
            self.point.client_cpu_seconds = time.process_time() - cpu


async def warm_up(target: Target, items: Iterator[Item], concurrency: int, requests: int) -> None:
    """Requests that do not count, with prompts of their own: caches, connections and compilers get to know the load."""
    generator = Generator(target, Point(number=-1, target=target.name, concurrency=concurrency))
    await generator.closed_loop(items, requests)
