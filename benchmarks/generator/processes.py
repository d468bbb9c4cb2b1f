"""The generator processes of a run, as the run controls them: one job, shared among them.

The processes are this host's, or those of `benchmarks.generator.hosts`. Each process receives its
share of a job, makes its prompts, reports that it is ready and receives the start time. Then it
reports its progress several times a second, and finally sends its measurements.
"""

import asyncio
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.to_thread
import attrs

from benchmarks.generator import clocks, messages
from benchmarks.generator.clocks import SAME_CLOCK, Offset
from benchmarks.generator.messages import Failed, Finished, Job, Link, LinkLost, Ready, Records, Start, Stop, Working
from benchmarks.generator.run import Measured, Progress
from benchmarks.generator.worker import work
from benchmarks.recording.results import Worker
from benchmarks.targets import TargetError
from benchmarks.targets.server import ClientOptions
from benchmarks.workload.plan import PointPlan

# Time between the start message and the start, so that the message reaches every worker.
HEAD_START_SECONDS = 0.1
STOP_SECONDS = 10.0


class WorkerLost(TargetError):
    """A generator process ended or fell silent in the middle of a point."""


@attrs.frozen
class Member:
    """One generator process; `name` is empty for those of this host, whose clock is the same."""

    link: Link
    name: str = ""

    async def offset(self) -> Offset:
        return await clocks.measure(self.link, time.monotonic) if self.name else SAME_CLOCK

    def lost(self, error: LinkLost) -> WorkerLost:
        return WorkerLost(f"worker {self.name} was lost: it {error}" if self.name else "a generator process died; its own message is above")


@attrs.define
class Part:
    """What one process measured of a point."""

    member: Member
    measured: Measured = attrs.field(factory=Measured)
    progress: Working = attrs.field(factory=lambda: Working(0, 0, 0, None))
    before: Offset = SAME_CLOCK
    after: Offset = SAME_CLOCK
    begun: bool = False
    ended: bool = False

    async def send(self, message: messages.ToWorker) -> None:
        """Send a message. Raises WorkerLost."""
        try:
            await self.member.link.send(message)
        except LinkLost as error:
            raise self.member.lost(error) from error

    async def until(self, kind: type[Ready] | type[Finished], show: Callable[[], None] = lambda: None) -> None:
        """Receive messages to the first of a kind. Raises WorkerLost, or TargetError for what the worker cannot do."""
        while True:
            try:
                message = await self.member.link.receive(messages.FROM_WORKER)
            except LinkLost as error:
                raise self.member.lost(error) from error
            match message:
                case Working():
                    self.progress = message
                    show()
                case Records(records=records):
                    self.measured.records += records
                case Failed(reason=reason):
                    self.ended = True
                    raise TargetError(f"worker {self.member.name}: {reason}" if self.member.name else reason)
                case Finished():
                    self.measured.cpu_seconds, self.measured.loop_lag = message.cpu_seconds, message.loop_lag
                    self.measured.complete = message.complete
                    self.ended = True
            if isinstance(message, kind):
                return

    async def read_clock(self) -> Offset:
        """Measure the worker's clock. Raises WorkerLost."""
        try:
            return await self.member.offset()
        except LinkLost as error:
            raise self.member.lost(error) from error

    def as_worker(self) -> Worker:
        found = self.measured
        return Worker(
            name=self.member.name,
            requests=len(found.records),
            client_cpu_seconds=found.cpu_seconds,
            loop_lag=found.loop_lag,
            clock_offset=self.before.seconds,
            clock_error=max(self.before.error, self.after.error, abs(self.after.seconds - self.before.seconds)),
        )


@attrs.define
class Fleet:
    """All processes that load one server's model.

    Attributes:
        gather: Returns the processes, and perhaps waits for them. Raises TargetError.
        processes: Their number.
        replaceable: Whether a lost process may be replaced before the next job.
    """

    gather: Callable[[], Awaitable[Sequence[Member]]]
    url: str
    model: str
    options: ClientOptions
    processes: int
    replaceable: bool = False

    async def run(self, job: PointPlan, measured: Measured, show: Callable[[Progress], None]) -> None:
        """Run a job, shared among the processes, into `measured`, even if this is cancelled.

        Raises:
            WorkerLost: A process was lost; the others were stopped.
            TargetError: A process cannot do the job.
        """
        parts = [Part(member) for member in await self.gather()]
        try:
            await self._start(parts, job, measured)
            await self._collect(parts, lambda: show(_sum(part.progress for part in parts)))
            for part, after in zip(parts, await _each(parts, Part.read_clock), strict=True):
                part.after = after
        except BaseException as error:
            measured.problem = str(error) if isinstance(error, TargetError) else ""
            await _stop([part for part in parts if part.begun and not part.ended])
            raise
        finally:
            _join(parts, measured)

    async def _start(self, parts: Sequence[Part], job: PointPlan, measured: Measured) -> None:
        async def prepare(part: Part) -> Offset:
            share, part.begun = (parts.index(part), len(parts)), True
            await part.send(Job(self.url, self.model, self.options, attrs.evolve(job, share=share)))
            await part.until(Ready)
            return await part.read_clock()

        for part, before in zip(parts, await _each(parts, prepare), strict=True):
            part.before = before
        # The message needs half of a round trip.
        measured.origin = time.monotonic() + HEAD_START_SECONDS + 4 * max(part.before.error for part in parts)
        for part in parts:
            await part.send(Start(measured.origin + part.before.seconds))

    async def _collect(self, parts: Sequence[Part], show: Callable[[], None]) -> None:
        await _each(parts, lambda part: part.until(Finished, show))


async def _each(parts: Sequence[Part], call: Callable[[Part], Awaitable[Offset | None]]) -> list[Offset]:
    """Call a function of each part at the same time; the first error cancels the others and is raised."""
    found: dict[int, Offset] = {}

    async def one(number: int, part: Part) -> None:
        found[number] = await call(part) or SAME_CLOCK

    try:
        async with anyio.create_task_group() as tasks:
            for number, part in enumerate(parts):
                tasks.start_soon(one, number, part)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [found[number] for number in range(len(parts))]


async def _stop(parts: Sequence[Part]) -> None:
    """Ask processes to stop, receive what they have, and leave those that do not stop."""

    async def end(part: Part) -> None:
        # The first error is the one that is reported.
        with suppress(TargetError):
            await part.send(Stop())
            await part.until(Finished)

    with anyio.CancelScope(shield=True), anyio.move_on_after(STOP_SECONDS):
        await _each(parts, end)
    for part in parts:
        if not part.ended:
            part.member.link.close()


def _sum(parts: Iterable[Working]) -> Progress:
    every = list(parts)
    ttfts = [part.ttft for part in every if part.ttft is not None]
    return Progress(
        in_flight=sum(part.in_flight for part in every),
        done=sum(part.done for part in every),
        tokens=sum(part.tokens for part in every),
        ttft=max(ttfts, default=None),
    )


def _join(parts: Sequence[Part], measured: Measured) -> None:
    found = [part.measured for part in parts]
    measured.records += sorted((record for one in found for record in one.records), key=lambda record: record.number)
    # A process has one core, so the busiest process decides.
    measured.cpu_seconds = max((one.cpu_seconds for one in found), default=0.0)
    measured.loop_lag = max((one.loop_lag for one in found if one.loop_lag is not None), default=None)
    measured.complete = bool(found) and all(one.complete for one in found)
    measured.workers = [part.as_worker() for part in parts if part.member.name]


@asynccontextmanager
async def open_fleet(url: str, model: str, processes: int, options: ClientOptions | None = None) -> AsyncIterator[Fleet]:
    """Open generator processes on this host for one server's model."""
    context = multiprocessing.get_context("spawn")
    pairs = [socket.socketpair() for _ in range(processes)]
    # The workers are daemons, so that none outlives this process.
    workers = [context.Process(target=work, args=(theirs,), daemon=True) for _, theirs in pairs]
    for worker, (_, theirs) in zip(workers, pairs, strict=True):
        worker.start()
        theirs.close()
    members = [Member(Link(*await asyncio.open_connection(sock=ours))) for ours, _ in pairs]

    async def gather() -> list[Member]:
        return members

    try:
        yield Fleet(gather, url, model, options or ClientOptions(), processes)
    finally:
        with anyio.CancelScope(shield=True):
            for member in members:
                await member.link.aclose()
            for worker in workers:
                await anyio.to_thread.run_sync(worker.join, STOP_SECONDS)
