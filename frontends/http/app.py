"""The HTTP application: routes of about ten lines over one `EngineManager`.

It knows HTTP but no engine. Other aiohttp programs use `build_app(manager)`;
`frontends.aiohttp_app` is the program that serves it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.access.control import Access
from frontends.http.access_log import Write, name_and_log, name_answer, sign
from frontends.http.authentication import CALLER, PAGES, ROOT, ask_for_key
from frontends.http.departure import Departure
from frontends.http.event_stream import KEEPALIVE_SECONDS, EventStream
from frontends.http.health import GenerateCheck, GetMetrics, LoadRoutes, report_load
from frontends.http.host_names import answer_to
from frontends.http.idempotency import IdempotencyStore, answer_once
from frontends.http.idempotency_store import HEADER, MAX_ANSWER
from frontends.http.openapi import document
from frontends.http.origins import Origins, answer_preflights
from frontends.http.page.routes import page_routes
from frontends.http.request_checks import BUDGET, MAX_BODY, ORIGINS, Handler, check_form, expect_later, take
from frontends.logs.log_writer import dropped_lines
from frontends.net.flush import MAX_HOLD, FlushScheduler
from frontends.net.receive_budget import ReceiveBudget
from frontends.net.turns import WorkQueue
from frontends.openai import sse
from frontends.openai.completions import ChatResponseBuilder, ResponseBuilder, TextResponseBuilder
from frontends.openai.decoding import BodyReader
from frontends.openai.errors import ErrorBody, HTTPFailure, describe
from frontends.openai.fan_out import generate_choices, open_choices
from frontends.openai.requests import (
    ChatRequest,
    Common,
    CompletionRequest,
    DetokenizeRequest,
    GenerateRequest,
    TokenizeRequest,
    adapter_of,
)
from frontends.openai.sizes import check_answer
from frontends.openai.wanted import ParsedBody, renamed
from llmserve import Delta, EngineDead, EngineManager, GenerationRequest, LLMServeError, MetricsSnapshot, State, TokenStream, Unavailable
from llmserve.runtime.heap import return_free_pages
from llmserve.state import unavailable

if TYPE_CHECKING:
    from prometheus_client import Metric

JSON = "application/json"

Asks = TypeVar("Asks", bound=Common)
Body = TypeVar("Body", bound=msgspec.Struct)
Made = TypeVar("Made")

GetSeries = Callable[[], Awaitable[Iterable["Metric"]]]


class Routes:
    """The handlers. Each reads its body, makes one call and writes the response."""

    def __init__(
        self,
        manager: EngineManager,
        model: str,
        metrics: GetMetrics | None,
        series: GetSeries | None,
        access: Access,
        departure: Departure,
        max_hold: float,
        keepalive: float,
        check: GenerateCheck | None,
    ) -> None:
        self.manager = manager
        self.model = model
        self._access = access
        self._departure = departure
        self.get_metrics = metrics or self._own_metrics
        self._check = check
        self._series = series or self._own_series
        self._scheduler = FlushScheduler(max_hold)
        self._keepalive = keepalive
        self._turns = WorkQueue()
        self._completion = BodyReader(CompletionRequest, self._turns)
        self._chat = BodyReader(ChatRequest, self._turns)
        self._generate = BodyReader(GenerateRequest, self._turns)
        self._tokenize = BodyReader(TokenizeRequest, self._turns)
        self._detokenize = BodyReader(DetokenizeRequest, self._turns)

    def table(self, root: str) -> list[web.RouteDef]:
        """Return each route, with and without the prefix `root`.

        Some proxies remove the prefix before they forward a request, and some do not.
        """
        posts = {
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat,
            "/generate": self.generate,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/ping": self.ready,
        }
        gets = {
            "/v1/models": self.models,
            "/v1/models/{model:.+}": self.one_model,
            "/health": self.ready,
            "/health/live": self.live,
            "/health/ready": self.ready,
            "/metrics": self.metrics,
            "/metrics.json": self.metrics_json,
            "/openapi.json": self.openapi,
            **LoadRoutes(self.manager, self.get_metrics, self._check).gets(self.ready),
        }
        return [
            *(web.post(at + path, handler, expect_handler=expect_later) for path, handler in posts.items() for at in {"", root}),
            *(web.get(at + path, handler, expect_handler=expect_later) for path, handler in gets.items() for at in {"", root}),
        ]

    async def completions(self, request: web.Request) -> web.StreamResponse:
        wanted = await self._wanted(request, self._completion)
        requests, adapter = wanted.requests, wanted.requests[0].adapter
        echoes = await self._echoes(requests) if wanted.echo else None
        answerer = TextResponseBuilder(
            requests[0].request_id, adapter or self.model, echoes.__getitem__ if echoes else None, generates=wanted.generates
        )
        return await self._answer(request, wanted, answerer)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        wanted = await self._wanted(request, self._chat)
        first = wanted.requests[0]
        return await self._answer(
            request, wanted, ChatResponseBuilder(first.request_id, first.adapter or self.model, first.tools, reasoning=wanted.reasoning)
        )

    async def generate(self, request: web.Request) -> web.StreamResponse:
        caller = request[CALLER]
        wanted, streams = await self._read(request, self._generate, lambda body: (body.generation_request(caller), body.stream))
        name_answer(request, wanted.request_id)
        if not streams:
            return _json(await self.manager.generate(wanted))
        async with self._events(request) as events, self.manager.stream(wanted) as stream:
            await events.begin()
            await events.pour([stream], lambda _, delta: sse.event(delta))
            await events.end(sse.event(stream.usage) + sse.DONE)
        return events.response

    def _events(self, request: web.Request) -> AbstractAsyncContextManager[EventStream]:
        return _event_stream(EventStream(request, self._scheduler, self._keepalive), recorded=HEADER in request.headers)

    async def models(self, request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._model_card(), *map(self._model_card, self._adapters)]})

    async def one_model(self, request: web.Request) -> web.Response:
        return _json(self._model_card(self._adapter(request.match_info["model"])))

    async def tokenize(self, request: web.Request) -> web.Response:
        def make(body: TokenizeRequest) -> GenerationRequest:
            self._adapter(body.model)
            return body.generation_request()

        prompt = await self.manager.tokenize(await self._read(request, self._tokenize, make))
        answer = {"count": len(prompt.token_ids), "max_model_len": self.manager.info.max_model_len, "tokens": prompt.token_ids}
        return await self._turns.run(_json, answer)

    async def detokenize(self, request: web.Request) -> web.Response:
        model, tokens = await self._read(request, self._detokenize, lambda body: (body.model, body.tokens))
        self._adapter(model)
        return await self._turns.run(_json, {"prompt": await self.manager.detokenize(tokens)})

    async def live(self, request: web.Request) -> web.Response:
        if self.manager.state == "failed":
            self._check_health()
        return _json({"status": "live", "state": self.manager.state})

    async def ready(self, request: web.Request) -> web.Response:
        if self._departure.begun:
            raise unavailable(State.DRAINING)
        self._check_health()
        return _json({"status": "ready", "state": self.manager.state})

    def _check_health(self) -> None:
        """Check the manager's health.

        Probes need no key. If other clients do, the response has no details of a failure.
        """
        try:
            self.manager.check_health()
        except LLMServeError as error:
            if self._access.keys is None:
                raise
            if isinstance(error, Unavailable):
                raise Unavailable("the server does not accept requests now", retry_after=error.retry_after, reason=error.reason) from None
            raise EngineDead("the engine has failed") from None

    async def metrics(self, request: web.Request) -> web.Response:
        accept, metrics, now = (
            ", ".join(request.headers.getall("Accept", [])),
            await self.get_metrics(),
            asyncio.get_running_loop().time(),
        )
        if _asks_for_json(accept):
            return _json(metrics.snapshot(now))
        from llmserve.observability import prometheus

        text, content_type = prometheus.render(metrics, now, accept, await self._series())
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def metrics_json(self, request: web.Request) -> web.Response:
        metrics = await self.get_metrics()
        return _json(metrics.snapshot(asyncio.get_running_loop().time()))

    async def openapi(self, request: web.Request) -> web.Response:
        keys, checks = self._access.keys is not None, self._check is not None
        return _json(document(version("llmserve"), keys=keys, checks=checks, root=request.config_dict[ROOT]))

    async def _own_metrics(self) -> MetricsSnapshot:
        return self.manager.metrics_snapshot().with_dropped(dropped_lines())

    async def _own_series(self) -> "Iterable[Metric]":
        from llmserve.observability import prometheus

        return prometheus.registered()

    async def _wanted(self, request: web.Request, reader: BodyReader[Asks]) -> ParsedBody:
        caller = request[CALLER]
        wanted = await self._read(request, reader, lambda body: body.wanted(caller, self._adapter(body.model)))
        if self.manager.engine_is_up:
            check_answer(wanted.requests, self.manager.info.max_model_len)
        return wanted

    async def _read(self, request: web.Request, reader: BodyReader[Body], make: Callable[[Body], Made]) -> Made:
        """Return what `make` builds from the request's body; nothing keeps the body."""
        context = self.manager.info.max_model_len if self.manager.engine_is_up else None
        return await reader.read(await take(request), make, context)

    async def _answer(self, request: web.Request, wanted: ParsedBody, answerer: ResponseBuilder) -> web.StreamResponse:
        requests, n = wanted.requests, wanted.per_prompt
        name_answer(request, answerer.id, n)
        answerer.show(wanted)
        if not wanted.stream:
            with renamed(**wanted.names):
                completions = await generate_choices(self.manager, requests)
            return await _whole(answerer.whole(completions, n, self._turns))
        async with (
            self._events(request) as events,
            renamed(**wanted.names),
            open_choices(self.manager, requests) as streams,
        ):
            running = streams if wanted.running_usage else None
            await events.begin()
            answerer.begin(streams)
            await events.pour(streams, partial(_chunk, answerer, set(range(len(streams))), running))
            usage = answerer.usage([stream.usage for stream in streams], n) if wanted.usage else b""
            await events.end(usage + sse.DONE)
        return events.response

    async def _echoes(self, requests: list[GenerationRequest]) -> list[str]:
        return [
            request.prompt if isinstance(request.prompt, str) else await self.manager.detokenize(request.prompt or ())
            for request in requests
        ]

    @property
    def _adapters(self) -> tuple[str, ...]:
        """The engine's adapters; empty before the engine has started and reported them."""
        return self.manager.info.adapters if self.manager.engine_is_up else ()

    def _adapter(self, model: str | None) -> str | None:
        """Return the adapter that a request names; None for the model itself. Raises ModelNotFound.

        While the engine is not up, its adapters are unknown: then any other name raises
        Unavailable.
        """
        if model not in (None, self.model) and not self.manager.engine_is_up:
            self.manager.check_health()
        return adapter_of(model, self.model, self._adapters)

    def _model_card(self, adapter: str | None = None) -> dict[str, Any]:
        length = self.manager.info.max_model_len if self.manager.state == "ready" else None
        card = {"id": adapter or self.model, "object": "model", "created": 0, "owned_by": "llmserve", "max_model_len": length}
        return card | ({"parent": self.model} if adapter else {})


def _chunk(answerer: ResponseBuilder, unopened: set[int], running: list[TokenStream] | None, index: int, delta: Delta) -> bytes:
    chunk = answerer.chunk(index, delta, running[index].usage if running else None)
    if not (unopened and chunk and index in unopened):
        return chunk
    # Sent with the first token and not earlier: clients measure the time to the first event.
    unopened.discard(index)
    return answerer.first(index, running[index].usage if running else None) + chunk


@asynccontextmanager
async def _event_stream(events: EventStream, *, recorded: bool) -> AsyncIterator[EventStream]:
    """Write a stream's error as an event, once events have begun.

    This context encloses the token stream's, so that the stream's errors pass through here last.
    """
    if recorded:
        events.record(MAX_ANSWER)
    try:
        yield events
    except LLMServeError as error:
        if not events.begun:
            raise
        await events.fail(sse.event(describe(error)[1]) + sse.DONE)
    finally:
        events.close()


def no_route(request: web.Request) -> web.Response:
    """Return a redirect if the path only has an extra slash at its end, else a 404."""
    routes = {route.resource.canonical for route in request.app.router.routes() if route.resource is not None}
    # The raw path: a percent-encoded path matches no route.
    path = request.raw_path.partition("?")[0]
    if path.endswith("/") and (path := path[:-1]) in routes:
        query = f"?{request.query_string}" if request.query_string else ""
        # 307 keeps the method and the body. The Location is a known path, never another host.
        return _failure(HTTPFailure(307, f"the path has no slash at its end: {path}", "http_error", {"Location": path + query}))
    # Each path once, without its copy below the root path.
    paths = sorted(path for path in routes if request.config_dict[ROOT] + path in routes and path not in PAGES)
    return _failure(HTTPFailure(404, f"unknown path; use one of {', '.join(paths)}", "http_error"))


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as OpenAI's error object with its status, without internal details."""
    try:
        return await handler(request)
    except LLMServeError as error:
        return _failure(error)
    except web.HTTPNotFound:
        return no_route(request)
    except web.HTTPException as error:
        allow = {name: value for name, value in error.headers.items() if name == "Allow"}
        return _failure(HTTPFailure(error.status, error.reason, "http_error", allow))


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
    """
    access, departure = access or Access(), departure or Departure()
    pages = Origins(frozenset(origins))
    logged = name_and_log(log, partial(_named_tenants, manager), probes=log_probes)
    known = [answer_preflights(pages), ask_for_key(access), check_form, answer_to(hosts)]
    middlewares = [logged, answer_errors, *([clients] if clients else []), *known, answer_once(memory)]
    app = web.Application(client_max_size=MAX_BODY, middlewares=middlewares)
    app[BUDGET] = ReceiveBudget(time.monotonic, max_incomplete)
    app[ORIGINS] = pages
    app[ROOT] = root_path
    routes = Routes(manager, model, metrics, series, access, departure, max_hold, keepalive, check)
    app.on_response_prepare.extend((sign, departure.sign, pages.sign, report_load(routes.get_metrics)))
    app.add_routes([*routes.table(root_path), *page_routes(root_path, needs_key=access.keys is not None)])
    return app


async def _whole(parts: AsyncIterator[bytes]) -> web.Response:
    """Return an answer as one body, or in parts if it is too large for an `Idempotency-Key`."""
    begin: list[bytes] = []
    async for part in parts:
        begin.append(part)
        if sum(map(len, begin)) > MAX_ANSWER:
            return web.Response(body=_joined(begin, parts), content_type=JSON)
    return web.Response(body=b"".join(begin), content_type=JSON)


async def _joined(begin: list[bytes], parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        while begin:
            yield begin.pop(0)
        async for part in parts:
            yield part
    finally:
        # Called later, when these frames no longer hold the completions.
        asyncio.get_running_loop().call_soon(return_free_pages)


def _asks_for_json(accept: str) -> bool:
    """Return whether an Accept header names JSON and neither Prometheus format.

    curl and routers for vLLM send `*/*` or no header, and expect Prometheus's text.
    """
    named = accept.lower()
    return JSON in named and "text/plain" not in named and "openmetrics" not in named


def _named_tenants(manager: EngineManager) -> Collection[str]:
    return manager.config.admission.table.named


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=sse.encode(body), status=status, content_type=JSON, headers=headers)


def _failure(error: LLMServeError) -> web.Response:
    status, body, headers = describe(error)
    assert isinstance(body, ErrorBody)
    return _json(body, status, headers)
