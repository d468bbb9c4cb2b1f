"""The HTTP server over a service, as the settings describe it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from frontends.http.access_log import open_log
from frontends.http.app import build_app
from frontends.http.departure import Departure
from frontends.http.health import GetMetrics, check_of
from frontends.http.idempotency import IdempotencyStore
from frontends.http.proxies import Proxies, know_clients
from frontends.http.server import running
from frontends.http.settings import HTTPServerSettings
from frontends.net.acceptor import Acceptor
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.tls import TLS, followed
from frontends.program.service import Service


@asynccontextmanager
async def serve_http(
    settings: HTTPServerSettings,
    service: Service,
    tls: TLS | None,
    departure: Departure,
    *,
    metrics: GetMetrics | None = None,
    memory: IdempotencyStore | None = None,
    quiet: bool = False,
) -> AsyncIterator[Acceptor]:
    """Serve HTTP, and yield the acceptor, which the caller gives connections.

    Args:
        settings: the settings of the server.
        service: the manager and its access control.
        tls: the certificates, whose files are followed; None for plain connections.
        departure: begins when the server is about to end.
        metrics: as for `build_app`.
        memory: as for `build_app`.
        quiet: whether changes of the certificates are logged by another process.

    Raises:
        ConfigurationError: the request log cannot be written.
    """
    http, manager = settings.http, service.manager
    proxies = Proxies.of(http.trusted_proxies)
    limits = settings.access.max_connections, settings.access.max_peer_connections
    limiter = ConnectionLimiter(*limits, strangers=not http.unix_access.owner_alone, is_proxy=proxies.trusts)
    log = open_log(http.request_log)
    app = build_app(
        manager,
        service.name,
        metrics,
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
        check=check_of(manager, settings.observability.generate_check, metrics),
        clients=know_clients(proxies, limiter),
        root_path=http.root_path,
    )
    try:
        async with running(app, limiter, tls) as acceptor, followed(tls, quiet=quiet):
            yield acceptor
    finally:
        if log is not None:
            log.close()
