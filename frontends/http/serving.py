"""The HTTP server over a service, as the settings describe it."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.answers.generation import Extras
from frontends.batch.service import BatchService
from frontends.batch.store import Store
from frontends.http.access_log import Write, open_log
from frontends.http.app import build_app
from frontends.http.departure import Departure
from frontends.http.health import GetMetrics, check_of
from frontends.http.idempotency import IdempotencyStore
from frontends.http.proxies import Proxies, know_clients
from frontends.http.routes.metrics import GetSeries
from frontends.http.server import running
from frontends.http.settings import HTTPServerSettings
from frontends.net.acceptor import Acceptor
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.tls import TLS, followed
from frontends.program.service import Service
from frontends.responses.memory import ResponseMemory
from frontends.responses.stored import ResponseStore


@asynccontextmanager
async def serve_http(
    settings: HTTPServerSettings,
    service: Service,
    tls: TLS | None,
    departure: Departure,
    *,
    metrics: GetMetrics | None = None,
    series: GetSeries | None = None,
    counted: GetMetrics | None = None,
    memory: IdempotencyStore | None = None,
    responses: ResponseStore | None = None,
    quiet: bool = False,
) -> AsyncIterator[Acceptor]:
    """Serve HTTP, and yield the acceptor, which the caller gives connections.

    Raises ConfigurationError if the request log cannot be written.

    Args:
        settings: the settings of the server.
        service: the manager and its access control.
        tls: the certificates, whose files are followed; None for plain connections.
        departure: begins when the server is about to end.
        metrics: as for `build_app`.
        series: as for `build_app`.
        counted: returns the metrics of all processes that share the engine, for /health/generate; None
            for those of this one.
        memory: as for `build_app`.
        responses: as for `build_app`; None creates a store for this process, with the settings' bounds.
        quiet: whether another process logs changes of the certificates.
    """
    http, limits, log = settings.http, settings.access, open_log(settings.http.request_log)
    proxies = Proxies.of(http.trusted_proxies)
    strangers = not http.unix_access.owner_alone
    limiter = ConnectionLimiter(limits.max_connections, limits.max_peer_connections, strangers, proxies.trusts)
    batches = None if http.batch_folder is None else BatchService(service.manager, service.name, Store(http.batch_folder))
    responses = responses or ResponseMemory(time.monotonic, http.stored_responses, http.stored_response_bytes)
    clients = know_clients(proxies, limiter)
    app = _build(settings, service, departure, log, clients, metrics, series, counted, memory, batches, responses)
    app.middlewares[:0] = settings.guards()
    try:
        async with (
            batches.running() if batches else nullcontext(),
            running(app, limiter, tls, watched=not settings.of_cluster) as acceptor,
            followed(tls, quiet=quiet),
        ):
            yield acceptor
    finally:
        if log is not None:
            log.close()


def _build(
    settings: HTTPServerSettings,
    service: Service,
    departure: Departure,
    log: Write | None,
    clients: Middleware,
    metrics: GetMetrics | None,
    series: GetSeries | None,
    counted: GetMetrics | None,
    memory: IdempotencyStore | None,
    batches: BatchService | None,
    responses: ResponseStore,
) -> web.Application:
    http = settings.http
    return build_app(
        service.manager,
        service.name,
        metrics,
        series,
        access=service.access,
        log=log,
        log_probes=http.log_probes,
        memory=memory,
        hosts=http.host_names(authenticated=settings.is_authenticated(service.access)),
        max_hold=settings.limits.max_hold,
        max_incomplete=settings.access.max_incomplete_bytes,
        departure=departure,
        origins=http.allowed_origins,
        keepalive=http.keepalive_interval,
        check=check_of(service.manager, settings.observability.generate_check, counted),
        clients=clients,
        root_path=http.root_path,
        batches=batches,
        responses=responses,
        extras=Extras(metrics=settings.observability.per_request_metrics, usage=settings.observability.force_include_usage),
    )
