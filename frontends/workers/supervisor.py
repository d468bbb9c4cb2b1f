"""The process that has the engine, the listener and admission, and serves no requests itself.

A worker's death only ends its own connections. The supervisor takes back its tickets, aborts its
requests in the engine, and starts another worker.
"""

import logging
import os
import pickle
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import anyio

from frontends.access.control import Access
from frontends.http.settings import HTTPServerSettings
from frontends.logs.log_writer import dropped_lines
from frontends.logs.operator_log import say
from frontends.program import spare_gpu
from frontends.program.console import loading
from frontends.program.preflight import unpack
from frontends.program.progress import announce, say_leaving, say_ready
from frontends.program.reload import LiveSettings
from frontends.program.signals import Stopping, signals
from frontends.workers import messages
from frontends.workers.engine_host import EngineHost
from frontends.workers.handle import WorkerHandle
from frontends.workers.metrics import MetricsAggregator
from frontends.workers.pool import WorkerPool
from frontends.workers.state import SupervisorState
from llmserve import EngineDead, LLMServeError, MetricsSnapshot
from llmserve.admission import AdmissionController
from llmserve.engines.processes.socket_files import FOLDER
from llmserve.observability.nvml import utilizations
from llmserve.observability.prometheus import MULTIPROCESS

logger = logging.getLogger(__name__)

# Seconds in which a worker imports its modules, before its engine starts.
IMPORT_SECONDS = 60.0
# Seconds in which a drained worker closes its connections and its engine client.
CLOSE_SECONDS = 10.0
# Seconds to send the last events of streams after the engine's death.
LAST_WORDS_SECONDS = 1.0


async def serve_workers(
    live: LiveSettings[HTTPServerSettings], count: int, addresses: list[str], listeners: Sequence[socket.socket], access: Access
) -> int:
    """Serve until a signal, the engine's death or too many dead workers; return the exit code.

    The signals are SIGTERM and SIGINT. This process follows `access` for its limits, and each
    worker for its keys.

    Raises ConfigurationError, EngineDead.
    """
    settings = live.current
    with shared_folders(settings):
        for listener in listeners:
            listener.setblocking(False)
        announce(addresses, settings.engine)
        supervisor = WorkerSupervisor(live, count, listeners, access)
        async with signals(
            Stopping(supervisor.served, supervisor.give_up, supervisor.stop).react, supervisor.reload, supervisor.restart_engines
        ):
            code = await supervisor.run()
    say("stopped")
    return code


@contextmanager
def shared_folders(settings: HTTPServerSettings) -> Iterator[None]:
    """Make the folders that workers share; enter this before any process imports vLLM."""
    with ExitStack() as stack:
        if settings.engine.spec.shares_core:
            # prometheus_client reads the variable only once.
            os.environ[MULTIPROCESS] = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmserve-metrics-"))
            # Kept as long as there are workers: a worker may still join a core that has just ended.
            FOLDER.enter()
            stack.callback(FOLDER.leave)
        yield


class Everyone(Protocol):
    """All servers of a cluster."""

    async def metrics(self) -> MetricsSnapshot:
        """Return the metrics of all of them. Raises LLMServeError."""

    async def series(self) -> list[Any]:
        """Return the Prometheus metrics that others have registered in all of them. Raises LLMServeError."""


class WorkerSupervisor:
    """The supervisor of all workers, from their start to their end.

    `everyone` is asked for the metrics in a cluster; None where this server is alone.
    """

    def __init__(
        self,
        live: LiveSettings[Any],
        count: int,
        listeners: Sequence[socket.socket],
        access: Access,
        everyone: Everyone | None = None,
    ) -> None:
        self._live = live
        self._listeners = listeners
        self._access = access
        self._everyone = everyone
        self._config = live.current.manager_config(access)
        self._state = SupervisorState()
        self._pool = WorkerPool(live.current, count, self._state, self._receive, self._lost)
        self._engine = EngineHost(live.current, self._config, self._pool, self._state)
        self.restart_engines = self._engine.restart
        self._aggregator = MetricsAggregator()
        self._tasks = anyio.create_task_group()

    @property
    def serving(self) -> bool:
        """Whether all initial workers have been up."""
        return self._state.serving

    @property
    def admission(self) -> AdmissionController:
        """The admission of all workers, once this serves."""
        return self._engine.admission

    @property
    def slots(self) -> int:
        """The largest batch of an engine, once this serves."""
        return self._engine.slots

    async def run(self) -> int:
        """Serve until the end; return the exit code. Raises ConfigurationError, EngineDead."""
        engine = self._live.current.engine
        try:
            async with self._tasks as tasks:
                await self._pool.start(tasks, self._listeners, self._config.restart.start_timeout + IMPORT_SECONDS)
                await unpack(engine)
                with loading(f"{engine.kind} {engine.model}"):
                    await tasks.start(self._engine.run)
                    while not (self._state.stopping or self._pool.all_up()):
                        await self._state.changed()
                tasks.start_soon(self._access.follow, self._engine.admission.set_tenants)
                if utilizations():
                    tasks.start_soon(spare_gpu.watch, self._engine.count, self._engine.running)
                code = await self._until_stopped()
                if code == 0:
                    await self._end()
                tasks.cancel_scope.cancel()
                return code
        finally:
            self._state.stopping = True
            self._pool.kill()
        return 0

    async def _until_stopped(self) -> int:
        statistics = self._engine.statistics()
        if not self._state.stopping and statistics is not None:
            say_ready(statistics)
        self._state.serving = True
        while not self._state.stopping:
            try:
                self._state.check()
            except EngineDead as error:
                say(f"failed    {error}")
                self._pool.send_all(messages.Died(None, str(error), for_good=True))
                self._state.stopping = True
                await anyio.sleep(LAST_WORDS_SECONDS)
                return 1
            await self._state.changed()
        return 0

    async def _end(self) -> None:
        """Wait until the workers have drained and ended."""
        limits = self._live.current.limits
        timeout, delay = limits.drain_timeout, limits.drain_delay
        if delay:
            say_leaving(delay)
        say(f"draining  {'then ' if delay else ''}at most {timeout:g} s; a second signal cancels open requests")
        with anyio.move_on_after(delay + timeout + CLOSE_SECONDS):
            while self._pool.handles:
                await self._state.changed()

    # Signals

    async def reload(self) -> None:
        """Let the workers reread their files, and apply the settings, after a SIGHUP."""
        self._pool.send_all(messages.Reread())
        await self._live.reload(self._access, self._reconfigure)

    def _reconfigure(self, settings: HTTPServerSettings) -> None:
        self._access.set_tenant_limit(settings.limits.tenant_limit)
        self._engine.reconfigure(settings.manager_config(self._access))
        self._pool.reconfigure(settings)

    def served(self) -> bool:
        """Return whether a worker may have open requests, even before all workers are up."""
        return any(handle.began for handle in self._pool.handles)

    def give_up(self) -> None:
        """Cancel the startup."""
        self._tasks.cancel_scope.cancel()
        self.stop(now=False)

    def stop(self, now: bool) -> None:  # noqa: FBT001 - as `Stopping` calls it
        """Let the workers finish their open requests, or cancel them `now`."""
        self._state.stopping = True
        for handle in list(self._pool.handles):
            # A replacement that is still starting has no open requests. A worker whose engine is
            # being restarted may have some.
            if handle.began:
                handle.channel.send(messages.Stop(now))
            else:
                handle.kill()
        self._state.notify()

    # Messages of workers

    def _lost(self, handle: WorkerHandle, left: list[tuple[int, str]]) -> None:
        self._aggregator.forget(handle)
        self._engine.lost(handle, left)

    def _receive(self, handle: WorkerHandle, message: messages.FromWorker) -> None:
        match message:
            case messages.Offer() | messages.Leave() | messages.FirstToken() | messages.Move():
                assert handle.admission_server is not None
                # Its Up message may come a moment later.
                handle.began = True
                handle.admission_server.receive(message)
            case messages.Claim() | messages.Answered():
                handle.answers.receive(message)
            case messages.StoreRequest():
                handle.responses.receive(message)
            case messages.StepCount():
                self._engine.record(handle, message)
            case _:
                self._note(handle, message)

    def _note(self, handle: WorkerHandle, message: messages.FromWorker) -> None:
        """Handle a worker's messages about itself."""
        match message:
            case messages.Alive():
                handle.questions, handle.silent = 0, False
            case messages.Parting():
                self._pool.part(handle)
            case messages.Load():
                handle.load = message
            case messages.Want():
                self._engine.want(handle, message.engine, message.life)
            case messages.Up():
                self._engine.joined(handle, message)
            case messages.Failed():
                self._state.failure = self._state.failure or message
                self._state.notify()
            case messages.MetricsRequest():
                self._tasks.start_soon(self._send_metrics, handle, message)
            case messages.WorkerMetrics():
                self._aggregator.receive(handle, message)

    # Metrics

    async def metrics_snapshot(self) -> MetricsSnapshot:
        """Return the metrics of all workers. Raises LLMServeError if no worker has ever reported."""
        metrics = await self._aggregator.gather(self._pool.handles, self._engine.statistics, one_engine=self._engine.is_shared)
        if metrics is None:
            raise LLMServeError("no worker has reported its metrics")
        return self._engine.with_restarts(metrics).with_dropped(dropped_lines())

    async def _send_metrics(self, asking: WorkerHandle, message: messages.MetricsRequest) -> None:
        found: Any
        try:
            if self._everyone is None or message.scope == "own":
                found = await self.metrics_snapshot()
            else:
                found = await (self._everyone.series() if message.scope == "series" else self._everyone.metrics())
        except Exception as error:
            # Without a reply, the worker answers that the metrics could not be collected.
            logger.warning("the metrics could not be collected: %s", error)
        else:
            asking.channel.send(messages.MetricsReply(message.number, pickle.dumps(found)))
