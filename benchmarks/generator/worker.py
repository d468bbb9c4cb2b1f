"""A generator process: receives a job, makes its prompts, and sends what it measured.

It keeps its connections to a server between jobs. The process has its own core; a client on its
server's core would measure itself.
"""

import itertools
import signal
import socket
import time
from asyncio import open_connection
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
import anyio.to_thread
import attrs

from benchmarks.generator import messages
from benchmarks.generator.messages import Clock, Failed, Finished, Job, Link, LinkLost, ReadClock, Ready, Records, Start, Working
from benchmarks.generator.run import Generator, Progress
from benchmarks.targets import Target, TargetError
from benchmarks.targets.http import HTTP
from benchmarks.targets.server import ClientOptions, open_session, parse_server
from benchmarks.targets.socket import open_socket
from benchmarks.targets.tokenizer import load_vocabulary

PROGRESS_SECONDS = 0.2


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


def work(ours: socket.socket) -> None:
    """Serve the process that started this one, until that process closes the socket."""
    # Only the parent handles Ctrl-C: it asks the workers to stop, and they send what they have.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def serve() -> None:
        await Worker(Link(*await open_connection(sock=ours))).serve()

    anyio.run(serve)


@attrs.define
class Worker:
    """Does the jobs that arrive over a link.

    Attributes:
        complete: Changes the options of a job's server, to those that only this host knows.
    """

    link: Link
    complete: Callable[[ClientOptions], ClientOptions] = lambda options: options
    _targets: dict[tuple[str, str], Target] = attrs.field(factory=dict)
    _job: Generator | None = None

    async def serve(self) -> None:
        """Do jobs until the other end closes the link."""
        async with AsyncExitStack() as stack:
            while True:
                try:
                    message = await self.link.receive(messages.TO_WORKER, seconds=None)
                    await self._take(message, stack)
                except LinkLost:
                    return

    async def _take(self, message: messages.ToWorker, stack: AsyncExitStack) -> None:
        match message:
            case Job():
                await self._prepare(message, stack)
            case ReadClock():
                await self.link.send(Clock(time.monotonic()))
            case Start(origin=origin) if self._job is not None:
                await self._perform(self._job, origin)
                await self._send_results(self._job)
            case messages.Stop() if self._job is not None:
                await self._send_results(self._job)

    async def _prepare(self, job: Job, stack: AsyncExitStack) -> None:
        key, options = (job.url, job.model), self.complete(job.options)
        try:
            if key not in self._targets:
                self._targets[key] = await stack.enter_async_context(open_target(job.url, job.model, options))
        except (TargetError, OSError, ValueError) as error:
            await self.link.send(Failed(str(error)[:1000]))
            return
        self._job = Generator(self._targets[key], job.plan, clock=time.monotonic)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report, self._job.progress)
            await anyio.to_thread.run_sync(self._job.prepare)
            tasks.cancel_scope.cancel()
        await self.link.send(Ready())

    async def _perform(self, generator: Generator, origin: float) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report, generator.progress)
            tasks.start_soon(self._obey, tasks.cancel_scope)
            await generator.run(origin)
            tasks.cancel_scope.cancel()

    async def _report(self, progress: Progress) -> None:
        """Send the progress, which also shows that this process lives."""
        while True:
            await anyio.sleep(PROGRESS_SECONDS)
            try:
                await self.link.send(Working(progress.in_flight, progress.done, progress.tokens, progress.ttft))
            except LinkLost:
                # The receiver notices it too, and ends the job.
                return

    async def _obey(self, everything: anyio.CancelScope) -> None:
        """Cancel the job at any message, or when the other end is gone."""
        with suppress(LinkLost):
            await self.link.receive(messages.TO_WORKER, seconds=None)
        everything.cancel()

    async def _send_results(self, generator: Generator) -> None:
        measured, self._job = generator.measured, None
        records = iter(measured.records)
        while batch := list(itertools.islice(records, messages.MAX_RECORDS)):
            await self.link.send(Records(batch))
        await self.link.send(Finished(measured.cpu_seconds, measured.loop_lag, measured.complete))
