"""A replica of a Ray Serve deployment: engine, manager and HTTP server on a unix socket."""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import attrs
from aiohttp import web

from frontends.cluster.autoscaling import Pressure, hosts
from frontends.cluster.relay import BEAT, Message, Relay, RelayedRequest, ReplicaAccepted, ResponseHead, with_beats
from frontends.cluster.replica_load import Load
from frontends.cluster.settings import ClusterServerSettings
from frontends.cluster.shared_state import Told
from frontends.http.app import build_app
from frontends.http.health import check_of
from frontends.http.server import running
from frontends.logs.operator_log import say
from frontends.net.acceptor import listen
from frontends.net.listeners import bind_unix
from frontends.program.preflight import prepare_environment, unpack
from frontends.program.service import Service, open_service
from llmserve import EngineDead, LLMServeError, MetricsSnapshot, State
from llmserve.admission import AdmissionController, UsageDelta
from llmserve.observability import prometheus

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

EXCHANGE_SECONDS = 1.0
# Seconds without a message after which a replica sends a BEAT.
BEAT_SECONDS = 2.0
# Maximum messages per second with events to one ingress. Two cores carry 4,100 to 4,600 messages
# per second with one token each through Ray; the rest queues up. At 32 streams the time to first
# token was 129 ms with 1,000 messages per second, and 85 ms with 500. So with more streams, each
# message carries more tokens.
MESSAGES_PER_SECOND = 500.0
# Maximum seconds to wait for other replicas, so that a scrape does not wait for a dead one.
GATHER_SECONDS = 5.0


class Replica:
    """A replica.

    Args:
        settings: the settings of the application.
        shared_state: a handle of the application's `SharedState`.
    """

    async def __init__(self, settings: ClusterServerSettings, shared_state: Any) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Start the replica, and return when its engine is up.

        Raises ConfigurationError, EngineError.
        """
        from ray import serve

        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        # By gRPC between processes. If the calling host becomes unreachable, an answer through
        # Ray's object store blocks the answering process for 12 s (measured with a link taken
        # down).
        self._replicas = serve.get_deployment_handle(context.deployment, context.app_name).options(_by_reference=False)
        self._shared_state = shared_state.options(_by_reference=False)
        self._told = self._open = 0
        self._rate = MESSAGES_PER_SECOND * settings.cluster.ingresses * hosts() / settings.cluster.most
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        try:
            await self._enter(settings, self._stack)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _enter(self, settings: ClusterServerSettings, stack: AsyncExitStack) -> None:
        prepare_environment(settings)
        access = settings.open_access()
        await unpack(settings.engine)
        service = await stack.enter_async_context(open_service(settings, access))
        manager = self._manager = service.manager
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmserve-")))
        acceptor = await stack.enter_async_context(running(self._build_app(settings, service)))
        await stack.enter_async_context(listen(acceptor, bind_unix(folder / "http")))
        self._relay = Relay(folder / "http")
        stack.push_async_callback(self._relay.close)
        await stack.enter_async_context(manager)
        max_wait = settings.limits.max_wait
        self._pressure = Pressure(patience=min(settings.limits.slo_ttft or max_wait, max_wait))
        self._tasks = [asyncio.create_task(access.follow(manager.set_tenants)), asyncio.create_task(self._exchange())]
        say(f"ready     replica {self._id}")

    def _build_app(self, settings: ClusterServerSettings, service: Service) -> web.Application:
        return build_app(
            service.manager,
            service.name,
            self._gather_metrics,
            self._gather_series,
            access=service.access,
            # An ingress can try another replica only until a part of the answer has come, and a
            # comment would be such a part.
            keepalive=0.0,
            max_hold=settings.limits.max_hold,
            max_incomplete=settings.access.max_incomplete_bytes,
            check=check_of(service.manager, settings.observability.generate_check),
        )

    async def __del__(self) -> None:
        """Shut down; Ray Serve calls this when the last request has ended or has timed out."""
        self._stop.set()
        following, exchanging = self._tasks
        await asyncio.wait([exchanging])
        following.cancel()
        await asyncio.wait([following])
        await self._stack.aclose()

    # Requests

    async def answer(self, asked: RelayedRequest, avoid: Sequence[str] = ()) -> AsyncIterator[Message]:
        """Answer a request with messages.

        If `avoid` has this replica's id, only the first message is sent.
        """
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
                        # Tokens of this pause go into the next message. The pause must not be so
                        # long that the ingress takes this replica for lost.
                        await asyncio.sleep(min(self._open / self._rate, BEAT_SECONDS))
        finally:
            self._open -= 1

    # Calls of Ray Serve

    def check_health(self) -> None:
        """Raise EngineDead if the replica must be replaced: its engine will not be restarted.

        An engine that is being restarted is no reason to replace the replica.
        """
        # The task that follows files ends without an error if there are none.
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

    # Exchange between replicas

    async def metrics_snapshot(self) -> tuple[str, Told]:
        """Return this replica's id and its metrics."""
        return self._id, self._tell()

    async def series(self) -> tuple[str, Any]:
        """Return this replica's id, and the Prometheus metrics that vLLM and others register."""
        return self._id, prometheus.registered()

    def _tell(self) -> Told:
        return asyncio.get_running_loop().time(), self._manager.metrics_snapshot()

    async def _gather_metrics(self) -> MetricsSnapshot:
        """Return the metrics of all replicas, including dead ones. Raises LLMServeError."""
        try:
            alive: dict[str, Told] = await self._ask_all("metrics_snapshot")
        except LLMServeError:
            # A replica is unreachable but not known to be dead. The shared state has the last
            # metrics of all other replicas.
            alive = {self._id: self._tell()}
        gone = await _in_time(self._shared_state.gone.remote(list(alive)))
        now = asyncio.get_running_loop().time()
        told = [*alive.values(), *([gone] if gone else [])]
        if not told:
            raise LLMServeError("no replica has reported its metrics")
        whole = MetricsSnapshot.of_engines([metrics.shifted(now - then) for then, metrics in told])
        return attrs.evolve(whole, statistics=attrs.evolve(whole.statistics, state=self._manager.state))

    async def _gather_series(self) -> list[Any]:
        """Return the Prometheus metrics of all replicas, labelled with their ids.

        While a replica is unreachable, these are the metrics of this replica only.
        """
        try:
            series = await self._ask_all("series")
        except LLMServeError:
            series = dict([await self.series()])
        return prometheus.labelled("replica", series)

    async def _ask_all(self, method: str) -> dict[str, Any]:
        """Return the answers of all replicas, by their ids."""
        answers = await _in_time(self._replicas.broadcast(method).results_async(return_exceptions=True))
        # A replica that has just died gives an exception.
        return dict(one for one in answers if isinstance(one, tuple))

    async def _exchange(self) -> None:
        """Exchange the tenants' usage with the other replicas every second, and once at the end."""
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
                # No error of Ray may fail a request. Until the exchange works again, each replica
                # is fair only among its own requests.
                if not failing:
                    logger.warning("the tenants' usage cannot be exchanged between replicas: %s", error)
                # The tenants' open requests on other replicas are unknown.
                failing, elsewhere = True, UsageDelta()
            else:
                owed, failing = UsageDelta(), False
            admission.served_elsewhere(elsewhere, asyncio.get_running_loop().time())


async def _in_time(answer: Awaitable[Answer]) -> Answer:
    try:
        async with asyncio.timeout(GATHER_SECONDS):
            return await answer
    except TimeoutError:
        raise LLMServeError("the replicas' metrics could not be collected") from None
