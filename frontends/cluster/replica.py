"""One engine and its manager, as a replica of a Ray Serve deployment: the same HTTP server as anywhere, on a socket of its own."""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import attrs

from frontends.access.control import Access
from frontends.cluster.arguments import parse
from frontends.cluster.autoscaling import Pressure, hosts
from frontends.cluster.relay import BEAT, Message, Relay, RelayedRequest, ReplicaAccepted, ResponseHead, with_beats
from frontends.cluster.replica_load import Load
from frontends.cluster.shared_state import Told
from frontends.http.app import build_app
from frontends.http.health import check_of
from frontends.http.server import running
from frontends.logs.operator_log import say
from frontends.net.acceptor import listen
from frontends.net.listeners import bind_unix
from frontends.program.lifecycle import prepare_environment, served_name, unpack
from frontends.program.options import engine_args, manager_config
from frontends.program.telemetry import telemetry
from llmserve import EngineDead, EngineManager, LLMServeError, MetricsSnapshot, State
from llmserve.admission import AdmissionController, UsageDelta
from llmserve.observability import prometheus

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

EXCHANGE_SECONDS = 1.0
# Without anything to say, an answer says that often that it is still being made.
BEAT_SECONDS = 2.0
# That an ingress may get, of events. Two cores carry 4,100 to 4,600 a second through Ray, each with one token, and what it cannot carry it
# keeps: at 32 streams first tokens came after 129 ms with 1,000 a second, after 85 ms with 500. So the more streams there are, the more
# tokens go in one message.
MESSAGES_PER_SECOND = 500.0
# Longer than a second replica's answer takes; without it a scrape would wait for a replica that has just died.
GATHER_SECONDS = 5.0


class Replica:
    """`arguments` are a command line (`frontends.cluster.arguments`), and `shared_state` is a handle of the application's `SharedState`."""

    async def __init__(self, arguments: Sequence[str], shared_state: Any) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Returns when the engine is up. Raises ConfigurationError, EngineError."""
        from ray import serve

        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        # By gRPC from process to process: an answer by Ray's object store keeps the process that gives it from all others for 12 s once
        # the host that asked cannot be reached (measured with a link taken down).
        self._replicas = serve.get_deployment_handle(context.deployment, context.app_name).options(_by_reference=False)
        self._shared_state = shared_state.options(_by_reference=False)
        self._options = parse(arguments)
        self._told = self._open = 0
        self._rate = MESSAGES_PER_SECOND * self._options.ingresses * hosts() / self._options.max_replicas
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        try:
            await self._enter(self._stack)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _enter(self, stack: AsyncExitStack) -> None:
        options = self._options
        prepare_environment(options)
        access = Access.open(options)
        await unpack(options)
        name = served_name(options)
        tracer = await stack.enter_async_context(telemetry(options, name))
        manager = self._manager = EngineManager.open(
            options.model, engine=options.engine, engine_args=engine_args(options), config=manager_config(options), tracer=tracer
        )
        if tracer is not None:
            tracer.observe(manager.statistics)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmserve-")))
        app = build_app(
            manager,
            name,
            self._gather_metrics,
            self._gather_series,
            access=access,
            # An ingress may ask another replica until something of the answer has come, and a comment would be something.
            keepalive=0.0,
            max_hold=options.max_hold,
            max_incomplete=options.max_incomplete_bytes,
            check=check_of(manager, options.generate_check),
        )
        acceptor = await stack.enter_async_context(running(app))
        await stack.enter_async_context(listen(acceptor, bind_unix(folder / "http")))
        self._relay = Relay(folder / "http")
        stack.push_async_callback(self._relay.close)
        await stack.enter_async_context(manager)
        self._pressure = Pressure(patience=min(manager.config.slo.ttft or manager.config.admission.max_wait, options.max_wait))
        self._tasks = [asyncio.create_task(access.follow(manager.set_tenants)), asyncio.create_task(self._exchange())]
        say(f"ready     replica {self._id}")

    async def __del__(self) -> None:
        """Ray Serve's word for leaving, when the last request has ended or has had its time."""
        self._stop.set()
        following, exchanging = self._tasks
        await asyncio.wait([exchanging])
        following.cancel()
        await asyncio.wait([following])
        await self._stack.aclose()

    # Requests

    async def answer(self, asked: RelayedRequest, avoid: Sequence[str] = ()) -> AsyncIterator[Message]:
        """The answer as messages; nothing but the first, if it is one of those that should not be asked."""
        yield ReplicaAccepted(self._id)
        if self._id in avoid:
            return
        self._open += 1
        events = False
        try:
            async with contextlib.aclosing(with_beats(self._relay.ask(asked), BEAT_SECONDS)) as messages:
                async for message in messages:
                    yield message
                    if isinstance(message, ResponseHead):
                        events = message.is_events
                    elif events and message != BEAT:
                        # What comes meanwhile goes with the next one, which has to come before this one is taken for lost.
                        await asyncio.sleep(min(self._open / self._rate, BEAT_SECONDS))
        finally:
            self._open -= 1

    # What Ray Serve asks

    def check_health(self) -> None:
        """An engine that is started again is no reason to start a replica again; one that is not, is. Raises EngineDead."""
        # Following ends by itself where there is no file to follow.
        if any(task.done() and not task.cancelled() and task.exception() for task in self._tasks):
            raise EngineDead("the server of this replica has ended")
        if self._manager.state is State.FAILED:
            self._manager.check_health()

    def record_routing_stats(self) -> dict[str, Any]:
        self._told += 1
        return Load.of(self._manager.statistics(), self._told).plain()

    def record_autoscaling_stats(self) -> dict[str, float]:
        statistics = self._manager.statistics()
        limit = statistics.admission.limit if statistics.admission else None
        return self._pressure.of(statistics, limit or self._manager.info.max_num_seqs)

    # What replicas know of each other

    async def metrics_snapshot(self) -> tuple[str, Told]:
        """Whose they are, and what it has counted so far."""
        return self._id, self._tell()

    async def series(self) -> tuple[str, Any]:
        """Whose they are, and Prometheus's series that vLLM and others have registered in its process."""
        return self._id, prometheus.registered()

    def _tell(self) -> Told:
        return asyncio.get_running_loop().time(), self._manager.metrics_snapshot()

    async def _gather_metrics(self) -> MetricsSnapshot:
        """All replicas' together, and what those had counted that are no more. Raises LLMServeError."""
        try:
            alive: dict[str, Told] = await self._ask_all("metrics")
        except LLMServeError:
            # One is out of reach and not known to be gone: of all others, what they last told the board.
            alive = {self._id: self._tell()}
        gone = await _in_time(self._shared_state.gone.remote(list(alive)))
        now = asyncio.get_running_loop().time()
        told = [*alive.values(), *([gone] if gone else [])]
        if not told:
            raise LLMServeError("no replica has told its figures")
        whole = MetricsSnapshot.of_engines([metrics.shifted(now - then) for then, metrics in told])
        return attrs.evolve(whole, statistics=attrs.evolve(whole.statistics, state=self._manager.state))

    async def _gather_series(self) -> list[Any]:
        """All replicas' together, each with its name; while one is out of reach, those of this one alone."""
        try:
            series = await self._ask_all("series")
        except LLMServeError:
            series = dict([await self.series()])
        return prometheus.labelled("replica", series)

    async def _ask_all(self, method: str) -> dict[str, Any]:
        """What each replica answers, by its name."""
        answers = await _in_time(self._replicas.broadcast(method).results_async(return_exceptions=True))
        # One that has just died is an exception.
        return dict(one for one in answers if isinstance(one, tuple))

    async def _exchange(self) -> None:
        """Every second, what tenants have here for what they have elsewhere; the last time at the end."""
        admission = self._manager.admission
        assert isinstance(admission, AdmissionController)
        owed = UsageDelta()
        failing = False
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), EXCHANGE_SECONDS)
            owed = owed.then(admission.tally())
            try:
                async with asyncio.timeout(GATHER_SECONDS):
                    elsewhere = await self._shared_state.exchange.remote(self._id, owed, self._tell())
            except Exception as error:
                # Ray's errors are many, and none of them is worth a request: each replica is fair by itself meanwhile.
                if not failing:
                    logger.warning("tenants' counters are not exchanged: %s", error)
                # What they have open is not known any more.
                failing, elsewhere = True, UsageDelta()
            else:
                owed, failing = UsageDelta(), False
            admission.served_elsewhere(elsewhere, asyncio.get_running_loop().time())


async def _in_time(answer: Awaitable[Answer]) -> Answer:
    try:
        async with asyncio.timeout(GATHER_SECONDS):
            return await answer
    except TimeoutError:
        raise LLMServeError("the replicas' figures could not be gathered") from None
