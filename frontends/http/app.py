"""The HTTP application over one `EngineManager`: its middlewares and its routes.

It knows HTTP but no engine. Other aiohttp programs use `build_app(manager)`;
`frontends.aiohttp_app` is the program that serves it.
"""

import time
from collections.abc import Collection, Iterable
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.access.control import Access
from frontends.answers.generation import Extras
from frontends.batch.service import BatchService
from frontends.http.access_log import Write, name_and_log, sign
from frontends.http.authentication import ROOT, ask_for_key
from frontends.http.departure import Departure
from frontends.http.errors import answer_errors
from frontends.http.event_stream import KEEPALIVE_SECONDS
from frontends.http.health import GenerateCheck, GetMetrics, report_load
from frontends.http.host_names import answer_to
from frontends.http.idempotency import IdempotencyStore, answer_once
from frontends.http.openapi import OpenAPIRoute
from frontends.http.origins import Origins, answer_preflights
from frontends.http.page.routes import PageRoutes, add_slash
from frontends.http.request_checks import BUDGET, MAX_BODY, ORIGINS, Handler, check_form, expect_later
from frontends.http.routes.batches import BatchRoutes
from frontends.http.routes.generation import GenerationRoutes
from frontends.http.routes.health import HealthRoutes
from frontends.http.routes.invocations import InvocationRoute
from frontends.http.routes.metrics import GetSeries, MetricsRoutes
from frontends.http.routes.models import ModelRoutes
from frontends.http.routes.pooling import PoolingRoutes
from frontends.http.routes.responses import ResponseRoutes
from frontends.http.routes.served_model import ServedModel
from frontends.logs.log_writer import dropped_lines
from frontends.net.flush import MAX_HOLD, FlushScheduler
from frontends.net.receive_budget import ReceiveBudget
from frontends.responses.memory import ResponseMemory
from frontends.responses.stored import ResponseStore
from llmserve import EngineManager, MetricsSnapshot


def build_app(
    manager: EngineManager,
    model: str = "bundled",
    metrics: GetMetrics | None = None,
    series: GetSeries | None = None,
    *,
    access: Access | None = None,
    log: Write | None = None,
    log_probes: bool = False,
    memory: IdempotencyStore | None = None,
    hosts: Collection[str] | None = None,
    max_hold: float = MAX_HOLD,
    max_incomplete: int | None = None,
    departure: Departure | None = None,
    origins: Iterable[str] = (),
    keepalive: float = KEEPALIVE_SECONDS,
    check: GenerateCheck | None = None,
    clients: Middleware | None = None,
    root_path: str = "",
    batches: BatchService | None = None,
    responses: ResponseStore | None = None,
    extras: Extras | None = None,
) -> web.Application:
    """Build an aiohttp application over a manager, which the caller enters and leaves.

    Run it with `frontends.http.server.running`. Another server needs `handler_cancellation=True`
    and `auto_decompress=False`, and then only that server's timeouts apply.

    Args:
        manager: the manager of the engine.
        model: the name that the model is served under.
        metrics: returns the metrics; None for this manager's own.
        series: returns other metrics for the Prometheus text; None for those of this process.
        access: the API keys; None or no keys for no authentication.
        log: takes a line for each request (`frontends.http.access_log.open_log`).
        log_probes: whether probes are logged too.
        memory: the store of responses for `Idempotency-Key`; None creates a store for this
            application.
        hosts: the names that the server answers to, in addition to localhost and IP addresses; None
            is any name (`frontends.http.host_names`).
        max_hold: maximum seconds that a stream's tokens are held back while the event loop falls
            behind the engine; 0 = never.
        max_incomplete: maximum bytes of all incomplete bodies; None is `receive_budget.MAX_BYTES`.
        departure: after its `begin` every response closes its connection, and readiness is 503.
        origins: origins other than the server's whose pages may call it from a browser; `*` is any.
        keepalive: seconds of silence after which a stream gets its status and a comment; 0 = never.
        check: answers /health/generate; None omits that route.
        clients: a middleware that notes whose request a proxy forwards (`frontends.http.proxies`).
        root_path: the path prefix under which a proxy serves the server, such as "/llm". Paths are
            served with and without it.
        batches: the files and batches, which the caller runs; None answers their routes with an error.
        responses: the store of the responses of /v1/responses; None creates a store for this
            application.
        extras: what the answers of completions and chats have in addition; None adds nothing.
    """
    access, departure, pages = access or Access(), departure or Departure(), Origins(frozenset(origins))
    get_metrics = metrics or partial(_own_metrics, manager)
    outer = [name_and_log(log, partial(_named_tenants, manager), probes=log_probes), answer_errors, *([clients] if clients else [])]
    checks = [answer_preflights(pages), ask_for_key(access), check_form, answer_to(hosts)]
    app = web.Application(client_max_size=MAX_BODY, middlewares=[*outer, *checks, answer_once(memory)])
    app[BUDGET], app[ORIGINS], app[ROOT] = ReceiveBudget(time.monotonic, max_incomplete), pages, root_path
    app.on_response_prepare.extend((sign, departure.sign, pages.sign, report_load(get_metrics)))
    served, responses = ServedModel(manager, model), responses or ResponseMemory(time.monotonic)
    generation = GenerationRoutes(served, FlushScheduler(max_hold), keepalive, responses, departure, extras)
    app.on_cleanup.append(generation.close)
    handlers = generation.routes() | ResponseRoutes(responses, served.turns, generation.follow).routes() | ModelRoutes(served).routes()
    handlers |= PoolingRoutes(served).routes() | BatchRoutes(served, batches).routes()
    handlers |= HealthRoutes(manager, access, departure, get_metrics, check).routes() | MetricsRoutes(get_metrics, series).routes()
    handlers |= OpenAPIRoute(keys=access.keys is not None, checks=check is not None).routes()
    handlers |= InvocationRoute(served, handlers).routes() | PageRoutes(needs_key=access.keys is not None).routes()
    app.add_routes(_table(handlers, root_path))
    return app


def _table(handlers: dict[str, Handler], root: str) -> list[web.RouteDef]:
    """Return each route, with and without the prefix `root`, and that of the prefix alone.

    Some proxies remove the prefix before they forward a request, and some do not.
    """
    define = {"GET": web.get, "POST": web.post, "DELETE": web.delete}
    defined = [web.get(root, add_slash)] if root else []
    for route, handler in handlers.items():
        method, path = route.split(" ")
        defined += [define[method](at + path, handler, expect_handler=expect_later) for at in {"", root}]
    return defined


async def _own_metrics(manager: EngineManager) -> MetricsSnapshot:
    return manager.metrics_snapshot().with_dropped(dropped_lines())


def _named_tenants(manager: EngineManager) -> Collection[str]:
    return manager.config.admission.table.named
