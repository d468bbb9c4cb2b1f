"""The process that owns engine, listener and admission, and serves no request itself. A worker's death costs its own connections alone:
its tickets come back, what it left in the engine is aborted, and another takes its place."""

import argparse
import asyncio
import itertools
import os
import pickle
import signal
import socket
import tempfile
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.to_thread

from frontends.access import Access
from frontends.http.idempotency import Answers
from frontends.options import engine_args, manager_config
from frontends.program import WATCH_SECONDS, announce, say_ready, unpack
from frontends.reception import RETRY_SECONDS
from frontends.startup import loading, say
from frontends.workers import messages
from frontends.workers.answers import AnswersDesk
from frontends.workers.desk import Desk
from frontends.workers.member import Member
from frontends.workers.messages import (
    Abort,
    Answered,
    Ask,
    Claim,
    Died,
    Failed,
    FirstToken,
    Gather,
    Gathered,
    Leave,
    Load,
    Offer,
    Report,
    Start,
    Steps,
    Stop,
    Up,
)
from frontends.workers.together import TogetherSteps
from llmserve import ConfigurationError, EngineDead, Facts
from llmserve.admission import AdmissionController, build_admission, wake
from llmserve.engines import create_engine
from llmserve.engines.vllm_core import VLLMCore
from llmserve.exporters.prometheus import MULTIPROCESS

# Workers that may die and be replaced: each needs a place at the engine core that was there from the start.
SPARES = 32
# A worker that has nothing more to do still closes its connections and its client.
CLOSE_SECONDS = 10.0
# For terminal events on their way when the engine has died.
LAST_WORDS_SECONDS = 1.0
# A worker that does not tell its figures within this time is counted with its last ones.
REPORT_SECONDS = 1.0
FULL_SECONDS = 0.005


async def serve_workers(options: argparse.Namespace, count: int, address: str, listener: socket.socket, access: Access) -> int:
    """Serve until SIGTERM or SIGINT, the engine's death, or too many workers' deaths; returns the exit code. `access` is followed
    meanwhile, here for its limits and by each worker for its keys.

    Raises ConfigurationError, EngineDead.
    """
    with ExitStack() as stack:
        if options.engine == "vllm":
            # Before vLLM is imported here or there: prometheus_client looks once.
            os.environ[MULTIPROCESS] = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmserve-metrics-"))
        listener.setblocking(False)
        announce([address], options)
        code = await Owner(options, count, listener, access).run()
    say("stopped")
    return code


class Owner:
    """All workers, and what they share."""

    def __init__(self, options: argparse.Namespace, count: int, listener: socket.socket, access: Access) -> None:
        self._options = options
        self._access = access
        self._count = count
        self._listener = listener
        self._members: list[Member] = []
        self._last = 0
        self._past: list[Facts] = []
        self._core: VLLMCore | None = None
        self._admission: AdmissionController | None = None
        self._stopping = False
        self._failure: Failed | None = None
        self._orphans: list[str] = []
        # `_started`: workers are told of the engine as they come; `_serving`: all of the first ones have been up.
        self._started = self._serving = False
        self._numbers = itertools.count(1)
        self._reports: dict[int, asyncio.Event] = {}
        self._change = asyncio.Event()
        self._steps = TogetherSteps(one_engine=options.engine == "vllm")

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._answers = Answers(self._loop.time)
        args, config = engine_args(self._options), manager_config(self._options)
        size: tuple[int, int | None] = 1, None
        if self._options.engine == "vllm":
            self._core = VLLMCore(self._options.model, args, at_once=self._count, in_all=self._count + SPARES)
        else:
            info = create_engine(self._options.engine, self._options.model, args).info
            size = info.max_num_seqs * self._count, info.max_num_batched_tokens
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._watch_signals, tasks.cancel_scope)
                for _ in range(self._count):
                    await self._spawn()
                tasks.start_soon(self._accept)
                await unpack(self._options)
                with loading(f"{self._options.engine} {self._options.model}"):
                    if self._core is not None:
                        await anyio.to_thread.run_sync(self._core.configure)
                        size = self._core.batch
                    self._admission = build_admission(config.admission, config.slo, *size)
                    await self._start_engine()
                tasks.start_soon(self._access.follow, self._admission.set_tenants)
                code = await self._until_stopped()
                if code == 0:
                    await self._end()
                tasks.cancel_scope.cancel()
                return code
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._stopping = True
            for member in self._members:
                member.kill()
            if self._core is not None:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._core.stop)
        return 0

    # From start to end

    async def _start_engine(self) -> None:
        for member in self._members:
            self._start(member)
        self._started = True
        if self._core is not None:
            await anyio.to_thread.run_sync(self._core.launch)
        while not all(member.up for member in self._members):
            self._raise_failure()
            await self._changed()

    async def _until_stopped(self) -> int:
        assert self._admission is not None
        say_ready(self._admission.statistics(self._loop.time()))
        self._serving = True
        while not self._stopping:
            try:
                if self._core is not None:
                    self._core.check()
                self._raise_failure()
            except EngineDead as error:
                say(f"failed    {error}")
                self._tell_all(Died(str(error)))
                self._stopping = True
                await anyio.sleep(LAST_WORDS_SECONDS)
                return 1
            await self._changed()
        return 0

    async def _end(self) -> None:
        """Workers drain by themselves once they are told to, and end."""
        timeout = self._options.drain_timeout
        say(f"draining  at most {timeout:g} s; a second signal ends open requests now")
        with anyio.move_on_after(timeout + CLOSE_SECONDS):
            while self._members:
                await self._changed()

    async def _changed(self) -> None:
        with anyio.move_on_after(WATCH_SECONDS):
            await self._change.wait()
        self._change.clear()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            kind = ConfigurationError if self._failure.wrong_argument else EngineDead
            raise kind(self._failure.reason)

    async def _watch_signals(self, everything: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if not self._serving:
                    say("stopping  as soon as the engine's start can be undone")
                    everything.cancel()
                now, self._stopping = self._stopping, True
                for member in list(self._members):
                    # One that is still starting in another's place has nothing to finish.
                    if member.up:
                        member.channel.send(Stop(now))
                    else:
                        member.kill()
                self._change.set()

    # Workers

    async def _spawn(self) -> Member:
        index, self._last = self._last, self._last + 1
        member = await Member.spawn(index, self._options, self._receive, self._lost)
        member.answers = AnswersDesk(self._answers, member.channel.send)
        self._members.append(member)
        return member

    def _start(self, member: Member) -> None:
        assert self._admission is not None
        member.desk = Desk(self._admission, member.channel.send, self._loop)
        member.channel.send(Start(None if self._core is None else pickle.dumps(self._core.client(member.index))))

    def _lost(self, member: Member) -> None:
        """Its channel has closed: it ended, as it was told to or not."""
        self._members.remove(member)
        if member.facts is not None:
            self._past.append(member.facts.ended())
        member.answers.close()
        left = member.desk.close() if member.desk is not None else []
        self._steps.forget(member.index)
        self._change.set()
        if self._stopping:
            return
        member.process.join(1)
        say(f"worker    {member.process.pid} died with {member.process.exitcode}; its connections are lost, {len(left)} requests aborted")
        self._abort(left)
        if self._last == self._count + SPARES:
            self._failure = Failed(f"{SPARES} workers have died", wrong_argument=False)
            return
        self._tasks.start_soon(self._replace)

    async def _replace(self) -> None:
        if self._stopping:
            return
        member = await self._spawn()
        if self._stopping:
            member.kill()
        elif self._started:
            self._start(member)

    def _abort(self, request_ids: list[str]) -> None:
        """By any worker that can: abort goes by the engine's ids, and the core takes it from every client."""
        self._orphans += request_ids if self._core is not None else []
        able = next((member for member in self._members if member.up), None)
        if able is not None and self._orphans:
            able.channel.send(Abort(self._orphans))
            self._orphans = []

    def _tell_all(self, message: Any) -> None:
        for member in self._members:
            member.channel.send(message)

    def _receive(self, member: Member, message: messages.FromWorker) -> None:
        match message:
            case Offer() | Leave() | FirstToken():
                assert member.desk is not None
                member.desk.receive(message)
            case Claim() | Answered():
                member.answers.receive(message)
            case Steps():
                self._record(member, message)
            case _:
                self._note(member, message)

    def _note(self, member: Member, message: Load | Up | Failed | Gather | Report) -> None:
        """What it says of itself."""
        match message:
            case Load():
                member.load = message
            case Up():
                if not any(other.up for other in self._members):
                    say(f"engine    {message.described}, {self._count} workers")
                member.up = True
                self._abort([])
                self._change.set()
            case Failed():
                self._failure = self._failure or message
                self._change.set()
            case Gather():
                self._tasks.start_soon(self._gather, member, message.number)
            case Report():
                member.facts = pickle.loads(message.facts)  # noqa: S301 - from a process that this one started
                if message.number in self._reports:
                    self._reports.pop(message.number).set()

    def _record(self, member: Member, message: Steps) -> None:
        assert self._admission is not None
        self._steps.take(member.index, message)
        now = self._loop.time()
        wake(self._admission.record(self._steps.together(now), now))

    # Connections

    async def _accept(self) -> None:
        """To the worker with the fewest; a listener of each one's own would leave it to chance."""
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                # Gone in the line, or no descriptor is left for a while.
                await anyio.sleep(RETRY_SECONDS)
                continue
            with connection:
                while not self._hand(connection):  # noqa: ASYNC110 - a socket pair that is full has no event in asyncio
                    await anyio.sleep(FULL_SECONDS)

    def _hand(self, connection: socket.socket) -> bool:
        # One that takes another's place starts beside those that serve; in the beginning all of them do, and say so.
        able = [member for member in self._members if member.up] or self._members
        return any(member.hand(connection) for member in sorted(able, key=lambda member: member.connections))

    # Facts

    async def _gather(self, asking: Member, number: int) -> None:
        """Ask all workers, and put together what they say, with what dead ones have said last."""
        async with anyio.create_task_group() as tasks:
            for member in self._members:
                tasks.start_soon(self._ask, member)
        parts = [member.facts for member in self._members if member.facts is not None]
        admission = self._admission.statistics(self._loop.time()) if self._admission else None
        if parts:
            facts = Facts.together([*parts, *self._past], admission, one_engine=self._core is not None)
            asking.channel.send(Gathered(number, pickle.dumps(facts)))

    async def _ask(self, member: Member) -> None:
        number = next(self._numbers)
        answered = self._reports[number] = asyncio.Event()
        member.channel.send(Ask(number))
        with anyio.move_on_after(REPORT_SECONDS):
            await answered.wait()
        self._reports.pop(number, None)
