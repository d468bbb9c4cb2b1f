"""A worker process: an HTTP server, and a manager with its own client of the shared engine.

The supervisor hands it accepted connections. Without the supervisor it ends immediately.
"""

import asyncio
import itertools
import os
import pickle
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import anyio
import anyio.to_thread
import attrs

from frontends.http.departure import PART_SECONDS, Departure
from frontends.http.serving import serve_http
from frontends.http.settings import HTTPServerSettings
from frontends.logs.log_writer import dropped_lines
from frontends.logs.operator_log import attach, set_level
from frontends.net.connection_limits import raise_descriptor_limit
from frontends.net.file_watch import reread
from frontends.program.lifecycle import BACKEND
from frontends.program.progress import describe_engine
from frontends.program.service import Service, open_service, reconfigure
from frontends.workers import messages
from frontends.workers.admission_client import AdmissionClient
from frontends.workers.channel import Channel
from frontends.workers.idempotency import IdempotencyClient
from frontends.workers.responses import ResponsesClient
from llmserve import ConfigurationError, EngineDead, EngineError, LLMServeError, MetricsSnapshot, RestartConfig, State
from llmserve.engines.vllm.shared_core import CoreClient
from llmserve.runtime.heap import set_heap_aside

# Seconds between two reports of the number of open connections.
LOAD_SECONDS = 0.05
WATCH_SECONDS = 0.05
# Maximum seconds to join a running engine, which answers a client immediately. Otherwise it is
# dead.
JOIN_SECONDS = 30
# Ten years: longer than any start, or any pause before one.
WAIT_SECONDS = 3e8
RESTART_UNDER_SUPERVISOR = RestartConfig(
    most=sys.maxsize, first_pause=0.05, longest_pause=0.05, stall_timeout=None, start_timeout=WAIT_SECONDS
)
# Maximum seconds to wait for the metrics of all workers. Scrapers wait for 10 s by default.
GATHER_SECONDS = 5.0


def work(channel: socket.socket, handed: socket.socket, settings: HTTPServerSettings, first: bool) -> None:  # noqa: FBT001 - `Process` passes it
    """Run the worker process."""
    # A terminal sends Ctrl-C and SIGHUP to all processes of its group, and systemd sends SIGTERM,
    # and what an operator asks it to send, to all processes of a service. The supervisor tells its
    # workers how to react.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # The supervisor and the engine then use the same id for a request.
    os.environ["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] = "1"
    raise_descriptor_limit()
    attach()
    worker = Worker(settings, handed, first=first)
    set_heap_aside()
    anyio.run(worker.run, channel, backend_options=BACKEND)


class Worker:
    """A worker, which follows the supervisor's messages.

    `first` says that it starts with the server and not in place of a worker that has ended. It is then
    ready when all engines are up: the server ends if one of them cannot start.
    """

    def __init__(self, settings: HTTPServerSettings, handed: socket.socket, *, first: bool) -> None:
        self._settings = settings
        self._first = first
        self._handed = handed
        self._taken = 0
        self._numbers = itertools.count(1)
        self._gathers: dict[int, asyncio.Future[Any]] = {}
        self.channel: Channel
        self._engine_is_shared = settings.engine.spec.shares_core
        # For each engine, the last life where this worker had a place, and the place that it waits
        # for.
        self._lives: defaultdict[int, int] = defaultdict(int)
        self._places: dict[int, asyncio.Future[messages.Start]] = {}
        self._stop = anyio.Event()
        self._departure = Departure()
        # Set when the supervisor has closed its end of `handed`: no more connections are on their
        # way.
        self._closed = anyio.Event()

    async def run(self, connection: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.channel = await Channel.open(connection, messages.FromSupervisor, self._receive, lambda: os._exit(1))
        self._answers = IdempotencyClient(self.channel.send)
        self._responses = ResponsesClient(self.channel.send, keeps=self._settings.http.stored_responses > 0)
        self._admission = AdmissionClient(self.channel.send)
        # With a shared engine the supervisor decides on restarts; a worker waits for the next
        # engine for any time.
        self._restart = attrs.evolve(RESTART_UNDER_SUPERVISOR, start_all=self._first) if self._engine_is_shared else None
        access = self._settings.open_access()
        async with open_service(self._settings, access, admission=self._admission, restart=self._restart) as service:
            self._service, self._manager = service, service.manager
            self._engines: Sequence[Any] = service.manager.engines
            self.channel.listen()
            await self._live(service)

    async def _live(self, service: Service) -> None:
        tls = self._settings.access.open_tls()
        # Quiet, because the supervisor logs changes of the files.
        server = serve_http(
            self._settings,
            service,
            tls,
            self._departure,
            metrics=self._gather_metrics,
            series=self._gather_series if self._settings.of_cluster else None,
            counted=self._gather_own,
            memory=self._answers,
            responses=self._responses,
            quiet=True,
        )
        async with server as self._acceptor:
            self._loop.add_reader(self._handed, self._take)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell_load)
                tasks.start_soon(self._tell_up)
                tasks.start_soon(partial(service.access.follow, self._manager.set_tenants, quiet=True))
                await self._serve()
                await self._part()
                tasks.cancel_scope.cancel()
            self._loop.remove_reader(self._handed)

    async def _serve(self) -> None:
        if self._engine_is_shared:
            for number, engine in enumerate(self._engines):
                engine.connect = partial(self._connect, number)
        else:
            for number in range(len(self._engines)):
                await self._place_at_engine(number)
        try:
            async with self._manager:
                await self._until_stopped()
        except (ConfigurationError, EngineError) as error:
            self.channel.send(messages.Failed(str(error), isinstance(error, ConfigurationError)))
            # The last events of streams are still being written. The supervisor ends this process.
            await anyio.sleep_forever()

    async def _until_stopped(self) -> None:
        """Wait for the end. Raises EngineDead when the engine will not be restarted."""
        while not self._stop.is_set():
            if self._manager.state is State.FAILED:
                self._manager.check_health()
            with anyio.move_on_after(WATCH_SECONDS):
                await self._stop.wait()

    async def _tell_up(self) -> None:
        """Report each life of each engine once, even while this worker drains.

        The queue continues when the supervisor knows that all workers are up.
        """
        told: defaultdict[int, int] = defaultdict(int)
        while True:
            states = self._manager.statistics().engines
            # Once all are up, the manager accepts requests a moment later.
            if self._manager.engine_is_up or not all(state.up for state in states):
                for number, state in enumerate(states):
                    if state.up and self._lives[number] > told[number]:
                        told[number] = self._lives[number]
                        self.channel.send(messages.Up(number, told[number], describe_engine(self._engines[number].info)))
            await anyio.sleep(WATCH_SECONDS)

    def _end(self, *, now: bool) -> None:
        self._departure.begin()
        limits = self._settings.limits
        # When the other workers have ended their responses, or cancelled them, followers here learn it a moment later.
        others = 0 if now else limits.drain_delay + limits.drain_timeout
        self._loop.call_later(others + PART_SECONDS, self._departure.dismiss)
        if now:
            self._manager.cancel_all("the server is stopping")
            self._stop.set()
        else:
            self._loop.call_later(limits.drain_delay, self._stop.set)

    async def _part(self) -> None:
        """Tell clients that their connections close, including those on their way.

        Clients that follow another worker's response stay until its end.
        """
        await self._departure.followed()
        self.channel.send(messages.Parting())
        with anyio.move_on_after(PART_SECONDS):
            await self._closed.wait()
        await self._acceptor.empty(self._departure.patience())

    # The engine

    async def _place_at_engine(self, number: int) -> messages.Start:
        """Wait for a place at an engine. Raises EngineDead when there will be no more engine."""
        place = self._places[number] = self._loop.create_future()
        self.channel.send(messages.Want(number, self._lives[number]))
        try:
            start: messages.Start = await place
        finally:
            del self._places[number]
        self._lives[number] = start.life
        return start

    async def _connect(self, number: int) -> CoreClient:
        start = await self._place_at_engine(number)
        if start.launched:
            os.environ["VLLM_ENGINE_READY_TIMEOUT_S"] = str(JOIN_SECONDS)
        assert start.client is not None
        # In a thread, because the first time it imports vLLM.
        client: CoreClient = await anyio.to_thread.run_sync(pickle.loads, start.client)
        return client

    def _bury(self, message: messages.Died) -> None:
        """Handle the death of a shared engine, or of another worker's engine."""
        death = EngineDead(message.reason, for_good=message.for_good, stalled=message.stalled, requested=message.requested)
        if not self._engine_is_shared:
            self._manager.cancel_all(message.reason)
            return
        for number in range(len(self._engines)):
            if not message.for_good and number != message.engine:
                continue
            place = self._places.get(number)
            if not (message.for_good and place is not None):
                self._engines[number].declare_dead(death)
            elif not place.done():
                # The supervisor may send it twice before the first message is processed.
                place.set_exception(death)

    def _receive(self, message: messages.FromSupervisor) -> None:  # noqa: C901 - one case for each kind of message
        match message:
            case messages.Check():
                self.channel.send(messages.Alive())
            case messages.Claimed():
                self._answers.claimed(message)
            case messages.StoreReply() | messages.StopResponse():
                self._responses.receive(message)
            case messages.Granted() | messages.Declined():
                self._admission.receive(message, self._loop.time())
            case messages.Start():
                # This worker may be ending, and want no place any more.
                if (place := self._places.get(message.engine)) is not None and not place.done():
                    place.set_result(message)
            case messages.WorkerMetricsRequest():
                self._report(message.number)
            case messages.MetricsReply():
                self._gathered(message)
            case messages.Abort():
                self._loop.create_task(self._engines[message.engine].abort_foreign(message.request_ids))
            case messages.Died():
                self._bury(message)
            case messages.Stop():
                self._end(now=message.now)
            case messages.Limits():
                self._admission.limit, self._admission.max_waiting = message.limit, message.max_waiting
            case messages.Reread():
                reread()
            case messages.Reconfigure():
                self._reconfigure(pickle.loads(message.settings))  # noqa: S301 - from the process that started this one

    def _reconfigure(self, settings: HTTPServerSettings) -> None:
        self._settings = settings
        set_level(settings.log.log_level)
        reconfigure(self._service, settings, self._restart)

    # Connections

    def _take(self) -> None:
        """Take connections that the supervisor has accepted."""
        while True:
            try:
                _, descriptors, _, _ = socket.recv_fds(self._handed, 1, 1)
            except BlockingIOError:
                return
            if not descriptors:
                self._loop.remove_reader(self._handed)
                self._closed.set()
                return
            self._taken += 1
            self._acceptor.serve(socket.socket(fileno=descriptors[0]))

    async def _tell_load(self) -> None:
        told = None
        while True:
            load = messages.Load(self._acceptor.limiter.inside, self._taken)
            if load != told:
                self.channel.send(load)
                told = load
            await anyio.sleep(LOAD_SECONDS)

    # Metrics

    def _report(self, number: int) -> None:
        from llmserve.observability import prometheus

        if prometheus.MULTIPROCESS in os.environ:
            prometheus.settle()
        self.channel.send(messages.WorkerMetrics(number, pickle.dumps(self._manager.metrics_snapshot().with_dropped(dropped_lines()))))

    async def _gather_metrics(self) -> MetricsSnapshot:
        """Return the metrics of all workers. Raises LLMServeError if the supervisor does not answer."""
        return self._with_state(await self._gather("all"))

    async def _gather_own(self) -> MetricsSnapshot:
        """Return the metrics of this server's workers, which are all without a cluster."""
        return self._with_state(await self._gather("own"))

    def _with_state(self, everyone: MetricsSnapshot) -> MetricsSnapshot:
        return attrs.evolve(everyone, statistics=attrs.evolve(everyone.statistics, state=self._manager.state))

    async def _gather_series(self) -> list[Any]:
        found: list[Any] = await self._gather("series")
        return found

    async def _gather(self, scope: Literal["own", "all", "series"]) -> Any:
        number = next(self._numbers)
        waiting = self._gathers[number] = self._loop.create_future()
        self.channel.send(messages.MetricsRequest(number, scope))
        with anyio.move_on_after(GATHER_SECONDS):
            await waiting
        if not waiting.done():
            del self._gathers[number]
            raise LLMServeError("the workers' metrics could not be collected")
        return waiting.result()

    def _gathered(self, message: messages.MetricsReply) -> None:
        waiting = self._gathers.pop(message.number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(pickle.loads(message.metrics))  # noqa: S301 - from the process that started this one
