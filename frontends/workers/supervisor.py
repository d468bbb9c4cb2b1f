"""The process that has the engine, the listener and admission, and serves no requests itself.

A worker's death only ends its own connections. The supervisor takes back its tickets, aborts its
requests in the engine, and starts another worker.
"""

import asyncio
import os
import pickle
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import anyio
import attrs

from frontends.access.control import Access
from frontends.http.idempotency_store import ResponseCache
from frontends.http.settings import HTTPServerSettings
from frontends.logs.log_writer import dropped_lines
from frontends.logs.operator_log import say
from frontends.net.acceptor import accept_waiting
from frontends.program.console import loading
from frontends.program.lifecycle import WATCH_SECONDS
from frontends.program.preflight import unpack
from frontends.program.progress import CHANGES, announce, say_leaving, say_ready
from frontends.program.signals import Stopping, signals
from frontends.workers import messages
from frontends.workers.accepting import accept, hand
from frontends.workers.admission_server import AdmissionServer
from frontends.workers.engine_core import SharedCore
from frontends.workers.handle import WorkerHandle
from frontends.workers.idempotency import IdempotencyServer
from frontends.workers.messages import (
    Abort,
    Alive,
    Answered,
    Claim,
    Died,
    Failed,
    FirstToken,
    Leave,
    Load,
    MetricsReply,
    MetricsRequest,
    Offer,
    Parting,
    Reread,
    Start,
    StepCount,
    Stop,
    Up,
    Want,
    WorkerMetrics,
)
from frontends.workers.metrics import MetricsAggregator
from frontends.workers.step_totals import StepAggregator
from frontends.workers.watchdog import watch
from llmserve import ConfigurationError, EngineDead, State
from llmserve.admission import AdmissionController, AdmissionStatistics, build_admission, wake
from llmserve.engines import create_engine
from llmserve.engines.processes.socket_files import FOLDER
from llmserve.lifecycle.supervisor import Supervisor
from llmserve.observability.prometheus import MULTIPROCESS

# Maximum number of replaced workers. The engine core has a place for each of them from its start.
SPARES = 32
# Seconds in which a drained worker closes its connections and its engine client.
CLOSE_SECONDS = 10.0
# Seconds to send the last events of streams after the engine's death.
LAST_WORDS_SECONDS = 1.0


async def serve_workers(
    settings: HTTPServerSettings, count: int, addresses: list[str], listeners: Sequence[socket.socket], access: Access
) -> int:
    """Serve until a signal, the engine's death or too many dead workers; return the exit code.

    The signals are SIGTERM and SIGINT. This process follows `access` for its limits, and each
    worker for its keys.

    Raises ConfigurationError, EngineDead.
    """
    with ExitStack() as stack:
        if settings.engine.spec.shares_core:
            # Before any process imports vLLM: prometheus_client reads the variable only once.
            os.environ[MULTIPROCESS] = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmserve-metrics-"))
            # Kept as long as there are workers: a worker may still join a core that has just ended.
            FOLDER.enter()
            stack.callback(FOLDER.leave)
        for listener in listeners:
            listener.setblocking(False)
        announce(addresses, settings.engine)
        supervisor = WorkerSupervisor(settings, count, listeners, access)
        async with signals(Stopping(supervisor.served, supervisor.give_up, supervisor.stop).react, supervisor.reloaded):
            code = await supervisor.run()
    say("stopped")
    return code


class WorkerSupervisor:
    """The supervisor of all workers, and the resources that they share."""

    def __init__(self, settings: HTTPServerSettings, count: int, listeners: Sequence[socket.socket], access: Access) -> None:
        self._settings = settings
        self._access = access
        self._count = count
        self._listeners = listeners
        self._handles: list[WorkerHandle] = []
        self._last = 0
        self._shared: SharedCore | None = None
        self._supervisor: Supervisor | None = None
        self._admission: AdmissionController | None = None
        self._stopping = False
        self._tasks = anyio.create_task_group()
        self._accepting = anyio.CancelScope()
        self._failure: Failed | None = None
        self._orphans: list[str] = []
        # Whether the engine is up, and whether all initial workers have been up.
        self._up = self._serving = False
        self._aggregator = MetricsAggregator()
        self._change = asyncio.Event()
        self._steps = StepAggregator(one_engine=settings.engine.spec.shares_core)

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._answers = ResponseCache(self._loop.time)
        self._args, self._config = self._settings.engine_args(), self._settings.manager_config(self._access)
        self._make_engine()
        try:
            async with self._tasks as tasks:
                for _ in range(self._count):
                    await self._spawn()
                tasks.start_soon(self._accept)
                tasks.start_soon(watch, self._handles, self._hung, self._config.restart.start_timeout)
                await unpack(self._settings.engine)
                with loading(f"{self._settings.engine.kind} {self._settings.engine.model}"):
                    if self._supervisor is not None:
                        await tasks.start(self._supervise)
                    while not (self._stopping or self._all_up()):
                        await self._changed()
                assert self._admission is not None
                tasks.start_soon(self._access.follow, self._admission.set_tenants)
                code = await self._until_stopped()
                if code == 0:
                    await self._end()
                tasks.cancel_scope.cancel()
                return code
        finally:
            self._stopping = True
            for handle in self._handles:
                handle.kill()
        return 0

    # The engine

    def _make_engine(self) -> None:
        engine, in_all = self._settings.engine, self._count + SPARES
        if not engine.spec.shares_core:
            info = create_engine(engine.kind, engine.model, self._args).info
            self._admit(info.max_num_seqs * self._count, info.max_num_batched_tokens)
            return
        self._shared = SharedCore(
            engine.model,
            self._args,
            at_once=self._count,
            in_all=in_all,
            open=self._engine_open,
            joined=self._all_up,
            steps=lambda: self._steps.made,
        )
        restart, clock = self._config.restart, self._loop.time
        self._supervisor = Supervisor(self._shared, restart, clock, busy=self._busy, up=self._engine_up, down=self._engine_down)

    def _admit(self, max_num_seqs: int, max_num_batched_tokens: int | None) -> None:
        self._admission = build_admission(self._config.admission, self._config.slo, max_num_seqs, max_num_batched_tokens)

    async def _supervise(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        assert self._supervisor is not None
        try:
            await self._supervisor.run(task_status=task_status)
        except EngineDead:
            # Once the server serves, `_until_stopped` reports the engine's end.
            if not self._serving:
                raise

    def _engine_open(self) -> None:
        assert self._shared is not None
        assert self._shared.core is not None
        if self._admission is None:
            self._admit(*self._shared.core.batch)
        for handle in self._handles:
            self._give_place(handle)

    def _all_up(self) -> bool:
        self._raise_failure()
        return all(handle.up for handle in self._handles)

    def _busy(self) -> int:
        return self._admission.statistics(self._loop.time()).running if self._admission is not None else 0

    def _engine_up(self) -> None:
        assert self._admission is not None
        self._up = True
        wake(self._admission.resume(self._loop.time()))
        if self._serving:
            say(CHANGES[State.READY])

    def _engine_down(self, error: EngineDead, pause: float | None) -> None:
        """Handle the engine's death; `pause` is None if it will not be restarted.

        This may be called twice: for an engine that hung, or when its successor did not start
        either.
        """
        assert self._admission is not None
        for handle in self._handles:
            handle.up = False
        self._tell_all(Died(str(error), pause is None, error.stalled))
        self._admission.suspend(self._loop.time())
        self._orphans = []
        if pause is None:
            self._failure = Failed(str(error), wrong_argument=False)
            self._change.set()
        elif self._up:
            say(CHANGES[State.RESTARTING])
        self._up = False

    # Serving and stopping

    async def _until_stopped(self) -> int:
        assert self._admission is not None
        if not self._stopping:
            say_ready(self._admission.statistics(self._loop.time()))
        self._serving = True
        while not self._stopping:
            try:
                self._raise_failure()
            except EngineDead as error:
                say(f"failed    {error}")
                self._tell_all(Died(str(error), for_good=True))
                self._stopping = True
                await anyio.sleep(LAST_WORDS_SECONDS)
                return 1
            await self._changed()
        return 0

    async def _end(self) -> None:
        """Wait until the workers have drained and ended."""
        timeout, delay = self._settings.limits.drain_timeout, self._settings.limits.drain_delay
        if delay:
            say_leaving(delay)
        say(f"draining  {'then ' if delay else ''}at most {timeout:g} s; a second signal cancels open requests")
        with anyio.move_on_after(delay + timeout + CLOSE_SECONDS):
            while self._handles:
                await self._changed()

    async def _accept(self) -> None:
        """Accept connections until the last worker has drained.

        That worker also gets the connections that are still in the listen backlog.
        """
        with self._accepting:
            async with anyio.create_task_group() as tasks:
                for listener in self._listeners:
                    tasks.start_soon(accept, listener, self._handles)
        for listener in self._listeners:
            for connection in accept_waiting(listener):
                with connection:
                    hand(connection, self._handles)
            listener.close()
        for handle in self._handles:
            handle.part()

    def _part(self, handle: WorkerHandle) -> None:
        """Hand no more connections to a worker that has drained."""
        if all(other.parting for other in self._handles if other is not handle):
            self._accepting.cancel()
        else:
            handle.part()

    async def _changed(self) -> None:
        with anyio.move_on_after(WATCH_SECONDS):
            await self._change.wait()
        self._change.clear()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            kind = ConfigurationError if self._failure.wrong_argument else EngineDead
            raise kind(self._failure.reason)

    def reloaded(self) -> None:
        """Tell the workers to reread their files, after a SIGHUP."""
        self._tell_all(Reread())

    def served(self) -> bool:
        """Return whether a worker may have open requests, even before all workers are up."""
        return any(handle.began for handle in self._handles)

    def give_up(self) -> None:
        """Cancel the startup."""
        self._tasks.cancel_scope.cancel()
        self.stop(now=False)

    def stop(self, now: bool) -> None:  # noqa: FBT001 - as `Stopping` calls it
        """Let the workers finish their open requests, or cancel them `now`."""
        self._stopping = True
        for handle in list(self._handles):
            # A replacement that is still starting has no open requests. A worker whose engine is
            # being restarted may have some.
            if handle.began:
                handle.channel.send(Stop(now))
            else:
                handle.kill()
        self._change.set()

    # Workers

    async def _spawn(self) -> WorkerHandle:
        index, self._last = self._last, self._last + 1
        handle = await WorkerHandle.spawn(index, self._settings, self._receive, self._lost)
        handle.answers = IdempotencyServer(self._answers, handle.channel.send)
        self._handles.append(handle)
        return handle

    def _give_place(self, handle: WorkerHandle) -> None:
        """Give a worker a place at the engine, if it wants one and there is one."""
        life, core = (1, None) if self._shared is None else (self._shared.life, self._shared.core)
        if handle.wants is None or handle.wants >= life or (core is None and self._shared is not None):
            return
        assert self._admission is not None
        handle.wants = None
        handle.admission_server = handle.admission_server or AdmissionServer(self._admission, handle.channel.send, self._loop)
        client = None if core is None else pickle.dumps(core.client(handle.index))
        limit, max_waiting = self._admission.policy.limit, self._admission.max_waiting
        handle.channel.send(Start(life, client, launched=life > 1, limit=limit, max_waiting=max_waiting))

    def _lost(self, handle: WorkerHandle) -> None:
        """Handle a closed channel: the worker has ended, expectedly or not."""
        self._handles.remove(handle)
        self._aggregator.forget(handle)
        handle.answers.close()
        left = handle.admission_server.close() if handle.admission_server is not None else []
        self._steps.forget(handle.index)
        self._change.set()
        if self._stopping:
            return
        handle.process.join(1)
        say(f"worker    {handle.process.pid} exited with code {handle.process.exitcode}; connections lost, {len(left)} requests aborted")
        self._abort(left)
        if self._last == self._count + SPARES:
            self._failure = Failed(f"{SPARES} workers have died", wrong_argument=False)
            return
        self._tasks.start_soon(self._replace)

    def _hung(self, handle: WorkerHandle, seconds: float) -> None:
        say(f"worker    {handle.process.pid} has not answered for {seconds:g} s; it is killed and replaced")
        # `_lost` follows when its channel closes.
        handle.process.kill()

    async def _replace(self) -> None:
        if self._stopping:
            return
        handle = await self._spawn()
        if self._stopping:
            handle.kill()

    def _abort(self, request_ids: list[str]) -> None:
        """Abort requests through any worker that is up.

        The core accepts an abort, by the engine's request ids, from any of its clients.
        """
        self._orphans += request_ids if self._shared is not None else []
        able = next((handle for handle in self._handles if handle.up), None)
        if able is not None and self._orphans:
            able.channel.send(Abort(self._orphans))
            self._orphans = []

    def _tell_all(self, message: Any) -> None:
        for handle in self._handles:
            handle.channel.send(message)

    def _receive(self, handle: WorkerHandle, message: messages.FromWorker) -> None:
        match message:
            case Offer() | Leave() | FirstToken():
                assert handle.admission_server is not None
                # Its Up message may come a moment later.
                handle.began = True
                handle.admission_server.receive(message)
            case Claim() | Answered():
                handle.answers.receive(message)
            case StepCount():
                self._record(handle, message)
            case _:
                self._note(handle, message)

    def _note(self, handle: WorkerHandle, message: Load | Want | Up | Failed | MetricsRequest | WorkerMetrics | Alive | Parting) -> None:
        """Handle a worker's messages about itself."""
        match message:
            case Alive():
                handle.questions, handle.silent = 0, False
            case Parting():
                self._part(handle)
            case Load():
                handle.load = message
            case Want():
                handle.wants = message.life
                self._give_place(handle)
            case Up():
                self._welcome(handle, message)
            case Failed():
                self._failure = self._failure or message
                self._change.set()
            case MetricsRequest():
                self._tasks.start_soon(self._tell_facts, handle, message.number)
            case WorkerMetrics():
                self._aggregator.receive(handle, message)

    def _welcome(self, handle: WorkerHandle, message: Up) -> None:
        if self._shared is not None and (message.life < self._shared.life or self._shared.core is None):
            # This engine has just died.
            return
        if not self._serving and not any(other.up for other in self._handles):
            say(f"engine    {message.described}, {self._count} workers")
        handle.up = handle.began = True
        self._abort([])
        self._change.set()

    async def _tell_facts(self, asking: WorkerHandle, number: int) -> None:
        def admission() -> AdmissionStatistics | None:
            return self._admission.statistics(self._loop.time()) if self._admission else None

        metrics = await self._aggregator.gather(self._handles, admission, one_engine=self._shared is not None)
        if metrics is not None:
            if self._supervisor is not None:
                metrics = attrs.evolve(metrics, statistics=attrs.evolve(metrics.statistics, restarts=self._supervisor.restarts))
            asking.channel.send(MetricsReply(number, pickle.dumps(metrics.with_dropped(dropped_lines()))))

    def _record(self, handle: WorkerHandle, message: StepCount) -> None:
        assert self._admission is not None
        self._steps.take(handle.index, message)
        now = self._loop.time()
        wake(self._admission.record(self._steps.together(now), now))
