"""A replica's HTTP server, in one process or several, and what the cluster needs of it."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, Protocol, Self

import attrs
from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.access.control import Access
from frontends.cluster.relay import SECRET
from frontends.cluster.settings import ClusterServerSettings
from frontends.http.departure import Departure
from frontends.http.request_checks import Handler
from frontends.http.serving import serve_http
from frontends.http.settings import HTTPServerSettings, HTTPSettings
from frontends.net.acceptor import listen
from frontends.net.connection_limits import spare_descriptors
from frontends.net.listeners import bind
from frontends.program.preflight import unpack
from frontends.program.reload import LiveSettings
from frontends.program.service import Service, open_service
from frontends.workers.supervisor import Everyone, WorkerSupervisor, shared_folders
from llmserve import EngineDead, MetricsSnapshot, State
from llmserve.admission import AdmissionController

# Seconds between two looks whether all workers are up.
LOOK_SECONDS = 0.1


@attrs.frozen(kw_only=True)
class ReplicaSettings(HTTPServerSettings):
    """The settings of a replica's HTTP server. `secret` is what every request must have."""

    of_cluster: ClassVar[bool] = True
    secret: str = attrs.field(repr=False)

    @classmethod
    def of(cls, settings: ClusterServerSettings, host: str, secret: str) -> Self:
        """Return the settings for a host's address."""
        # All connections come from the few addresses of the ingresses, which have the certificates.
        access = attrs.evolve(settings.access, tls_cert=None, tls_key=None, max_connections=None, max_peer_connections=spare_descriptors())
        # An ingress can try another replica only until a part of the answer has come, and a comment
        # would be such a part. A client's next request may reach a replica that does not have its
        # responses, so none keeps them.
        http = HTTPSettings(hosts=(host,), port=0, keepalive_interval=0.0, stored_responses=0)
        return cls(
            engine=settings.engine, limits=settings.limits, observability=settings.observability, access=access, http=http, secret=secret
        )

    def is_authenticated(self, access: Access) -> bool:
        return True

    def guards(self) -> list[Middleware]:
        return [ask_for_secret(self.secret)]


def ask_for_secret(secret: str) -> Middleware:
    """Return a middleware that refuses clients that are no ingress: all hosts of the cluster reach the port."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not hmac.compare_digest(request.headers.get(SECRET, "").encode(errors="surrogateescape"), secret.encode()):
            raise web.HTTPMisdirectedRequest(text="this port is for the ingresses of this application")
        return await handler(request)

    return admit


class ReplicaServer(Protocol):
    """A replica's server."""

    @property
    def host(self) -> str:
        """The address where it listens."""

    @property
    def port(self) -> int: ...

    @property
    def admission(self) -> Any: ...

    @property
    def slots(self) -> int:
        """The largest batch of an engine."""

    async def metrics_snapshot(self) -> MetricsSnapshot:
        """Return the metrics of this replica. Raises LLMServeError."""

    async def drain(self) -> None:
        """Accept no more requests, and wait until the open ones end or their time is over."""

    def check_health(self) -> None:
        """Raise EngineDead if the replica must be replaced: its engine will not be restarted."""


@asynccontextmanager
async def serving(settings: ReplicaSettings, workers: int, everyone: Everyone) -> AsyncIterator[ReplicaServer]:
    """Serve, and yield the server when its engine is up; `everyone` gets the metrics of all replicas.

    Raises ConfigurationError, EngineError.
    """
    access = settings.open_access()
    run = _one_process(settings, access, everyone) if workers == 1 else _several_processes(settings, access, workers, everyone)
    async with run as server:
        yield server


@attrs.frozen
class OneProcess:
    """The server in the replica's own process."""

    host: str
    port: int
    _service: Service
    _drain_timeout: float
    _following: asyncio.Task[None]

    @property
    def admission(self) -> Any:
        return self._service.manager.admission

    @property
    def slots(self) -> int:
        return self._service.manager.info.max_num_seqs

    async def metrics_snapshot(self) -> MetricsSnapshot:
        return self._service.manager.metrics_snapshot()

    async def drain(self) -> None:
        await self._service.manager.drain(self._drain_timeout)

    def check_health(self) -> None:
        # The task ends without an error if there are no files to follow.
        if self._following.done() and not self._following.cancelled() and self._following.exception():
            raise EngineDead("the server of this replica has ended")
        # An engine that is being restarted is no reason to replace the replica.
        if self._service.manager.state is State.FAILED:
            self._service.manager.check_health()


@asynccontextmanager
async def _one_process(settings: ReplicaSettings, access: Access, everyone: Everyone) -> AsyncIterator[OneProcess]:
    await unpack(settings.engine)
    [host] = settings.http.hosts
    async with open_service(settings, access) as service:
        server = serve_http(settings, service, None, Departure(), metrics=everyone.metrics, series=everyone.series, quiet=True)
        async with server as acceptor, listen(acceptor, listener := bind(host, 0)), service.manager:
            following = asyncio.create_task(access.follow(service.manager.set_tenants))
            try:
                yield OneProcess(host, listener.getsockname()[1], service, settings.limits.drain_timeout, following)
            finally:
                following.cancel()
                await asyncio.wait([following])


@attrs.frozen
class SeveralProcesses:
    """The server in worker processes, with the supervisor in the replica's own process."""

    host: str
    port: int
    _supervisor: WorkerSupervisor
    _running: asyncio.Task[int]

    @property
    def admission(self) -> AdmissionController:
        return self._supervisor.admission

    @property
    def slots(self) -> int:
        return self._supervisor.slots

    async def metrics_snapshot(self) -> MetricsSnapshot:
        return await self._supervisor.metrics_snapshot()

    async def drain(self) -> None:
        self._supervisor.stop(now=False)
        await asyncio.wait([self._running])

    def check_health(self) -> None:
        if self._running.done():
            raise EngineDead("the server of this replica has ended")


@asynccontextmanager
async def _several_processes(
    settings: ReplicaSettings, access: Access, workers: int, everyone: Everyone
) -> AsyncIterator[SeveralProcesses]:
    [host] = settings.http.hosts
    with shared_folders(settings), bind(host, 0) as listener:
        listener.setblocking(False)
        supervisor = WorkerSupervisor(LiveSettings(settings, lambda: settings), workers, [listener], access, everyone)
        # In a task of its own, because Ray Serve ends a replica in another task than it starts it.
        running = asyncio.create_task(_run(supervisor))
        try:
            port = listener.getsockname()[1]
            while not supervisor.serving:
                done, _ = await asyncio.wait([running], timeout=LOOK_SECONDS)
                if done:
                    raise EngineDead(f"the server of this replica ended with {running.result()}")
            yield SeveralProcesses(host, port, supervisor, running)
        finally:
            if not running.done():
                supervisor.stop(now=True) if supervisor.serving else supervisor.give_up()
            await asyncio.wait([running])


async def _run(supervisor: WorkerSupervisor) -> int:
    # With sniffio installed, anyio knows the event loop in a callback only if `anyio.run` has started
    # it, or if this variable says so. Ray has started it.
    with suppress(ImportError):
        from sniffio import current_async_library_cvar

        current_async_library_cvar.set("asyncio")
    return await supervisor.run()
