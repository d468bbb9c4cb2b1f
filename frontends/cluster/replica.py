"""A replica of a Ray Serve deployment: engine, manager and HTTP server, for the ingresses."""

import asyncio
import contextlib
import hmac
import itertools
import logging
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import attrs
from aiohttp import web

from frontends.cluster.autoscaling import Pressure
from frontends.cluster.relay import SECRET
from frontends.cluster.replica_directory import ReplicaAddress
from frontends.cluster.replica_load import Load
from frontends.cluster.settings import ClusterServerSettings
from frontends.cluster.shared_state import Told
from frontends.http.app import build_app
from frontends.http.health import check_of
from frontends.http.request_checks import Handler
from frontends.http.server import running
from frontends.logs.operator_log import say
from frontends.net.acceptor import listen
from frontends.net.connection_limits import ConnectionLimiter, spare_descriptors
from frontends.net.listeners import bind
from frontends.program.preflight import prepare_environment, unpack
from frontends.program.service import Service, open_service
from llmserve import EngineDead, LLMServeError, MetricsSnapshot, State
from llmserve.admission import AdmissionController, UsageDelta
from llmserve.observability import prometheus

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

EXCHANGE_SECONDS = 1.0
REPORT_SECONDS = 0.5
# Maximum seconds to wait for other replicas, so that a scrape does not wait for a dead one.
GATHER_SECONDS = 5.0


class Replica:
    """A replica.

    Args:
        settings: the settings of the application.
        shared_state: a handle of the application's `SharedState`.
        secret: the application's secret, which every request must have.
    """

    async def __init__(self, settings: ClusterServerSettings, shared_state: Any, secret: str) -> None:  # type: ignore[misc]  # Ray Serve awaits it
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
        self._secret = secret
        self._drain_timeout = settings.limits.drain_timeout
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        try:
            await self._enter(settings, self._stack)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _enter(self, settings: ClusterServerSettings, stack: AsyncExitStack) -> None:
        from ray.util import get_node_ip_address

        prepare_environment(settings)
        access = settings.open_access()
        await unpack(settings.engine)
        service = await stack.enter_async_context(open_service(settings, access))
        manager = self._manager = service.manager
        # All connections come from the few addresses of the ingresses.
        limiter = ConnectionLimiter(most_of_peer=spare_descriptors())
        acceptor = await stack.enter_async_context(running(self._build_app(settings, service), limiter))
        listener = bind(get_node_ip_address(), 0)
        await stack.enter_async_context(listen(acceptor, listener))
        self._address = ReplicaAddress(self._id, *listener.getsockname()[:2])
        await stack.enter_async_context(manager)
        max_wait = settings.limits.max_wait
        self._pressure = Pressure(patience=min(settings.limits.slo_ttft or max_wait, max_wait))
        self._tasks = [asyncio.create_task(task) for task in (self._exchange(), access.follow(manager.set_tenants), self._report_load())]
        say(f"ready     replica {self._id}")

    def _build_app(self, settings: ClusterServerSettings, service: Service) -> web.Application:
        app = build_app(
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
        app.middlewares.insert(0, self._admit)
        return app

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse clients that are no ingress: the port is open to all hosts of the cluster."""
        if not hmac.compare_digest(request.headers.get(SECRET, "").encode(), self._secret.encode()):
            raise web.HTTPForbidden(text="this port is for the ingresses of this application")
        return await handler(request)

    async def __del__(self) -> None:
        """Shut down; Ray Serve calls this when the last request has ended or has timed out."""
        exchanging, *others = self._tasks
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        # Ray Serve waits only for the requests that it has sent itself, so for none.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GATHER_SECONDS):
                await self._shared_state.leave.remote(self._id)
        await self._manager.drain(self._drain_timeout)
        self._stop.set()
        await asyncio.wait([exchanging])
        await self._stack.aclose()

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

    async def _report_load(self) -> None:
        """Tell the ingresses where this replica is, and how much it has to do."""
        for number in itertools.count(1):
            # No error of Ray may fail a request. Without reports ingresses choose this replica last.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._shared_state.report.remote(self._address, Load.of(self._manager.statistics(), number))
            await asyncio.sleep(REPORT_SECONDS)

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
