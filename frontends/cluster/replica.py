"""A replica of a Ray Serve deployment: engine, manager and HTTP server, for the ingresses."""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from frontends.cluster.autoscaling import Pressure
from frontends.cluster.replica_directory import ReplicaAddress
from frontends.cluster.replica_load import Load
from frontends.cluster.replica_server import ReplicaSettings, serving
from frontends.cluster.settings import ClusterServerSettings
from frontends.cluster.shared_state import Told
from frontends.logs.operator_log import say
from frontends.net.connection_limits import raise_descriptor_limit
from frontends.program.preflight import prepare_environment
from llmserve import EngineDead, LLMServeError, MetricsSnapshot
from llmserve.admission import AdmissionController, UsageDelta
from llmserve.observability import prometheus

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

EXCHANGE_SECONDS = 1.0
REPORT_SECONDS = 0.5
# Maximum seconds to wait for an actor of Ray.
GATHER_SECONDS = 5.0
# Maximum seconds of a scrape to wait for other replicas, and then for the shared state. A worker
# waits 5 s for both.
SCRAPE_SECONDS = 2.0


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
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        try:
            await self._enter(settings, self._stack)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _enter(self, settings: ClusterServerSettings, stack: AsyncExitStack) -> None:
        from ray.util import get_node_ip_address

        raise_descriptor_limit()
        prepare_environment(settings)
        own = ReplicaSettings.of(settings, get_node_ip_address(), secrets.token_urlsafe())
        server = self._server = await stack.enter_async_context(serving(own, settings.cluster.workers, self))
        self._address = ReplicaAddress(self._id, server.host, server.port, own.secret)
        max_wait = settings.limits.max_wait
        self._pressure = Pressure(patience=min(settings.limits.slo_ttft or max_wait, max_wait))
        self._statistics = (await server.metrics_snapshot()).statistics
        # Ingresses know the replica before the application counts as running.
        await self._tell_load(1)
        self._tasks = [asyncio.create_task(task) for task in (self._exchange(), self._report_load())]
        say(f"ready     replica {self._id}")

    async def __del__(self) -> None:
        """Shut down; Ray Serve calls this when it has sent its last request."""
        exchanging, reporting = self._tasks
        reporting.cancel()
        await asyncio.wait([reporting])
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GATHER_SECONDS):
                await self._shared_state.leave.remote(self._id)
        # Ray Serve waits only for the requests that it has sent itself, so for none.
        await self._server.drain()
        self._stop.set()
        await asyncio.wait([exchanging])
        await self._stack.aclose()

    # Calls of Ray Serve

    def check_health(self) -> None:
        """Raise EngineDead if the replica must be replaced: its engine will not be restarted."""
        if any(task.done() for task in self._tasks):
            raise EngineDead("the server of this replica has ended")
        self._server.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        admission = self._statistics.admission
        limit = admission.limit if admission else None
        return self._pressure.of(self._statistics, limit or self._server.slots)

    # Exchange between replicas

    async def own_metrics(self) -> tuple[str, Told]:
        """Return this replica's id and its metrics."""
        return self._id, await self._tell()

    async def own_series(self) -> tuple[str, Any]:
        """Return this replica's id, and the Prometheus metrics that vLLM and others register."""
        # Workers then write the counts that they have kept back to where this process reads them.
        await self._tell()
        return self._id, prometheus.registered()

    async def _tell(self) -> Told:
        metrics = await self._server.metrics_snapshot()
        return asyncio.get_running_loop().time(), metrics

    async def metrics(self) -> MetricsSnapshot:
        """Return the metrics of all replicas, including dead ones. Raises LLMServeError."""
        try:
            alive: dict[str, Told] = await self._ask_all("own_metrics")
        except LLMServeError:
            # A replica is unreachable but not known to be dead. The shared state has the last
            # metrics of all other replicas.
            alive = {}
        if self._id not in alive:
            alive[self._id] = await self._tell()
        gone = await _in_time(self._shared_state.gone.remote(list(alive)))
        now = asyncio.get_running_loop().time()
        # The state is that of the first one.
        told = [alive.pop(self._id), *alive.values(), *([gone] if gone else [])]
        return MetricsSnapshot.of_engines([metrics.shifted(now - then) for then, metrics in told])

    async def series(self) -> list[Any]:
        """Return the Prometheus metrics of all replicas, labelled with their ids.

        While a replica is unreachable, these are the metrics of this replica only.
        """
        try:
            series = await self._ask_all("own_series")
        except LLMServeError:
            series = dict([await self.own_series()])
        return prometheus.labelled("replica", series)

    async def _ask_all(self, method: str) -> dict[str, Any]:
        """Return the answers of all replicas, by their ids."""
        answers = await _in_time(self._replicas.broadcast(method).results_async(return_exceptions=True))
        # A replica that has just died gives an exception.
        return dict(one for one in answers if isinstance(one, tuple))

    async def _report_load(self) -> None:
        """Tell the ingresses where this replica is, and how much it has to do."""
        for number in itertools.count(2):
            await asyncio.sleep(REPORT_SECONDS)
            await self._tell_load(number)

    async def _tell_load(self, number: int) -> None:
        # No error of Ray may fail a request. Without reports ingresses choose this replica last.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GATHER_SECONDS):
                self._statistics = (await self._server.metrics_snapshot()).statistics
                await self._shared_state.report.remote(self._address, Load.of(self._statistics, number))

    async def _exchange(self) -> None:
        """Exchange the tenants' usage with the other replicas every second, and once at the end."""
        admission = self._server.admission
        assert isinstance(admission, AdmissionController)
        owed = UsageDelta()
        failing = False
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), EXCHANGE_SECONDS)
            owed = owed.then(admission.tally())
            try:
                async with asyncio.timeout(GATHER_SECONDS):
                    elsewhere = await self._shared_state.exchange.remote(self._id, owed, await self._tell())
            except Exception as error:
                # No error of Ray may fail a request. Until the exchange works again, each replica
                # is fair only among its own requests.
                if not failing and not self._stop.is_set():
                    logger.warning("the tenants' usage cannot be exchanged between replicas: %s", str(error) or type(error).__name__)
                # The tenants' open requests on other replicas are unknown.
                failing, elsewhere = True, UsageDelta()
            else:
                owed, failing = UsageDelta(), False
            admission.served_elsewhere(elsewhere, asyncio.get_running_loop().time())


async def _in_time(answer: Awaitable[Answer]) -> Answer:
    try:
        async with asyncio.timeout(SCRAPE_SECONDS):
            return await answer
    except Exception as error:
        # Ray has several classes for replicas that are gone, and one that is starting may have no
        # metrics yet.
        raise LLMServeError("the replicas' metrics could not be collected") from error
