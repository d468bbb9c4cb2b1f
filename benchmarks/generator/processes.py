"""Generators in separate processes; a client on its server's core would measure itself.

Each worker keeps its connections between jobs. It receives a job, makes its prompts, reports that
it is ready and receives the start time. Then it reports its progress several times a second, and
finally sends its measurements. Only the parent handles Ctrl-C: it asks the workers to stop, and
they send what they have.
"""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import anyio
import anyio.to_thread
import attrs

from benchmarks.generator.run import Generator, Measured, Progress
from benchmarks.targets import Target, TargetError
from benchmarks.targets.http import HTTP
from benchmarks.targets.server import ClientOptions, open_session, parse_server
from benchmarks.targets.socket import open_socket
from benchmarks.targets.tokenizer import load_vocabulary
from benchmarks.workload.plan import PointPlan

PROGRESS_SECONDS = 0.2
POLL_SECONDS = 0.02
# Time between the start message and the start, so that the message reaches every worker.
HEAD_START_SECONDS = 0.1
STOP_SECONDS = 10.0


@asynccontextmanager
async def open_target(url: str, model: str, options: ClientOptions) -> AsyncIterator[Target]:
    """Open the target of a URL: http, https, or a raw socket's tcp, tls, unix."""
    if url.startswith("http"):
        server = parse_server(url, options)
        async with open_session(server) as session:
            yield HTTP(session, server, model, load_vocabulary(options.tokenizer))
    else:
        async with open_socket(url) as target:
            yield target


def work(pipe: Connection, url: str, model: str, options: ClientOptions) -> None:
    """Run a worker until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_work(pipe, url, model, options))


async def _work(pipe: Connection, url: str, model: str, options: ClientOptions) -> None:
    async with open_target(url, model, options) as target:
        while isinstance(job := await anyio.to_thread.run_sync(_receive, pipe), PointPlan):
            generator = Generator(target, job, clock=time.monotonic)
            generator.prepare()
            pipe.send("ready")
            origin = await anyio.to_thread.run_sync(_receive, pipe)
            if isinstance(origin, float):
                await _perform(pipe, generator, origin)
            pipe.send(generator.measured)


async def _perform(pipe: Connection, generator: Generator, origin: float) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_report, pipe, generator.progress)
        tasks.start_soon(_obey, pipe, tasks.cancel_scope)
        await generator.run(origin)
        tasks.cancel_scope.cancel()


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


async def _report(pipe: Connection, progress: Progress) -> None:
    while True:
        await anyio.sleep(PROGRESS_SECONDS)
        pipe.send(progress)


async def _obey(pipe: Connection, everything: anyio.CancelScope) -> None:
    """Cancel the job at any message, or when the parent ends."""
    while not pipe.poll():  # noqa: ASYNC110 - a pipe has no event to wait for
        await anyio.sleep(POLL_SECONDS)
    _receive(pipe)
    everything.cancel()


@attrs.define
class Fleet:
    """All workers, as the parent controls them."""

    pipes: list[Connection]

    async def run(self, job: PointPlan, measured: Measured, show: Callable[[Progress], None]) -> None:
        """Run a job, shared among the workers, into `measured`, even if this is cancelled.

        Raises TargetError if a worker dies.
        """
        parts: list[Measured] = []
        try:
            for which, pipe in enumerate(self.pipes):
                pipe.send(attrs.evolve(job, share=(which, len(self.pipes))))
            await self._until_all(lambda _, message: message == "ready")
            measured.origin = time.monotonic() + HEAD_START_SECONDS
            for pipe in self.pipes:
                pipe.send(measured.origin)
            await self._collect(parts, show)
        except asyncio.CancelledError:
            for pipe in self.pipes:
                pipe.send("stop")
            with anyio.CancelScope(shield=True), anyio.move_on_after(STOP_SECONDS):
                await self._collect(parts, show)
            raise
        finally:
            _join(parts, measured, complete=len(parts) == len(self.pipes))

    async def _collect(self, parts: list[Measured], show: Callable[[Progress], None]) -> None:
        latest: dict[int, Progress] = {}

        def is_last(which: int, message: Any) -> bool:
            if isinstance(message, Progress):
                latest[which] = message
                show(_sum(latest.values()))
            elif isinstance(message, Measured):
                parts.append(message)
            return isinstance(message, Measured)

        await self._until_all(is_last)

    async def _until_all(self, is_last: Callable[[int, Any], bool]) -> None:
        """Receive messages until each worker has sent one for which `is_last` is true."""
        waiting = set(range(len(self.pipes)))
        while waiting:
            for which, message in self._arrived():
                if is_last(which, message):
                    waiting.discard(which)
            if waiting:
                await anyio.sleep(POLL_SECONDS)

    def _arrived(self) -> Iterator[tuple[int, Any]]:
        for which, pipe in enumerate(self.pipes):
            while pipe.poll():
                try:
                    yield which, pipe.recv()
                except (EOFError, OSError) as error:
                    raise TargetError("a generator process died; its own message is above") from error


def _sum(parts: Iterable[Progress]) -> Progress:
    every = list(parts)
    ttfts = [part.ttft for part in every if part.ttft is not None]
    return Progress(
        in_flight=sum(part.in_flight for part in every),
        done=sum(part.done for part in every),
        tokens=sum(part.tokens for part in every),
        ttft=max(ttfts, default=None),
    )


def _join(parts: Sequence[Measured], measured: Measured, *, complete: bool) -> None:
    measured.records += sorted((record for part in parts for record in part.records), key=lambda record: record.number)
    measured.lags += [lag for part in parts for lag in part.lags]
    # A process has one core, so the busiest process decides.
    measured.cpu_seconds = max((part.cpu_seconds for part in parts), default=0.0)
    measured.complete = complete and all(part.complete for part in parts)


@asynccontextmanager
async def open_fleet(url: str, model: str, processes: int, options: ClientOptions | None = None) -> AsyncIterator[Fleet]:
    """Open worker processes for one server's model."""
    options = options or ClientOptions()
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(processes)]
    # The workers are daemons, so that none outlives this process.
    workers = [context.Process(target=work, args=(theirs, url, model, options), daemon=True) for _, theirs in pairs]
    for worker, (_, theirs) in zip(workers, pairs, strict=True):
        worker.start()
        theirs.close()
    try:
        yield Fleet([ours for ours, _ in pairs])
    finally:
        for ours, _ in pairs:
            ours.close()
        with anyio.CancelScope(shield=True):
            for worker in workers:
                await anyio.to_thread.run_sync(worker.join, STOP_SECONDS)
