"""What load balancers ask of a server: /version, /ping, /load, a check that generates, and the load as a header of answers (ORCA).

The names and the forms are those that clients of vLLM and SGLang know.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import msgspec
from aiohttp import web

from frontends.http.authentication import CALLER, OPEN, route_of
from frontends.http.request_checks import Handler
from llmserve import EngineManager, GenerationRequest, LLMServeError, MetricsSnapshot, Overloaded, Sampling, Unavailable
from llmserve.admission import Refusal
from llmserve.state import ManagerStatistics

GetMetrics = Callable[[], Awaitable[MetricsSnapshot]]

# SGLang waits as long in its own check. A probe may give up earlier; the check goes on, and the next probe gets its result.
CHECK_SECONDS = 20.0
LOOK_SECONDS = 0.25
# https://github.com/envoyproxy/envoy/blob/main/source/common/orca/orca_parser.cc reads these two forms, and vLLM writes them.
FORMATS = frozenset({"TEXT", "JSON"})
ASK_HEADER, LOAD_HEADER = "endpoint-load-metrics-format", "endpoint-load-metrics"
# With several workers the figures come from all of them. A response that wants them does not ask the workers again within this time.
FRESH_SECONDS = 0.1


class Version(msgspec.Struct):
    """The answer to GET /version: the engine's version, as in vLLM. llmserve's own is in the series `llmserve_build_info`."""

    version: str


class ServerLoad(msgspec.Struct):
    """The answer to GET /load. `server_load` counts open requests, as in vLLM; `limit` is None where admission has no number."""

    server_load: int
    running: int
    waiting: int
    limit: int | None


class Checked(msgspec.Struct):
    """The answer to GET /health/generate."""

    status: str = "generates"


class GenerateCheck:
    """Sends one token through the engine, at most every `interval` seconds: all probes between get the last result.

    A server at its limit refuses the check's request too. Then any token that the engine makes for another request is the proof.

    Args:
        interval: seconds, more than 0.
        metrics: the metrics of all workers that share the engine; None where this manager has the engine alone.
    """

    def __init__(self, manager: EngineManager, interval: float, metrics: GetMetrics | None = None) -> None:
        self._manager = manager
        self._interval = interval
        self._metrics = metrics
        self._next = 0.0
        self._check: asyncio.Task[bool] | None = None

    async def __call__(self) -> None:
        """Raises Unavailable if the engine makes no token, or as `EngineManager.check_health` does."""
        self._manager.check_health()
        loop = asyncio.get_running_loop()
        if self._check is None or (self._check.done() and loop.time() >= self._next):
            self._next = loop.time() + self._interval
            self._check = loop.create_task(self._ask())
        # The probe may go. Others wait for the same check.
        if not await asyncio.shield(self._check):
            raise Unavailable(f"the engine made no token within {CHECK_SECONDS:g} s", retry_after=self._interval, reason=Refusal.SLOW)

    async def _ask(self) -> bool:
        generates = False
        with anyio.move_on_after(CHECK_SECONDS):
            async with anyio.create_task_group() as tasks:

                async def first(work: Callable[[], Awaitable[bool]]) -> None:
                    nonlocal generates
                    generates = await work() or generates
                    tasks.cancel_scope.cancel()

                tasks.start_soon(first, self._own_token)
                tasks.start_soon(first, self._another_s_token)
        return generates

    async def _own_token(self) -> bool:
        # Token 0 is in every vocabulary, and needs no tokenizer.
        request = GenerationRequest([0], sampling=Sampling(max_tokens=1, temperature=0.0, detokenize=False), tenant=self._tenant())
        try:
            await self._manager.generate(request)
        except Overloaded:
            await anyio.sleep_forever()
        except LLMServeError:
            return False
        return True

    async def _another_s_token(self) -> bool:
        before: int | None = None
        while True:
            # Without the workers' figures there is no proof.
            with suppress(LLMServeError):
                metrics = await self._metrics() if self._metrics is not None else self._manager.metrics_snapshot()
                tokens = metrics.statistics.engine.generation_tokens
                before = tokens if before is None else before
                if tokens > before:
                    return True
            await anyio.sleep(LOOK_SECONDS)

    def _tenant(self) -> str:
        """A tenant that admission knows, where the operator's table refuses all others."""
        table = self._manager.config.admission.table
        return next(iter(table.named), "default") if table.default is None else "default"


class LoadRoutes:
    """The handlers. `ready` answers /health, and so /ping."""

    def __init__(self, manager: EngineManager, metrics: GetMetrics, check: GenerateCheck | None) -> None:
        self._manager = manager
        self._metrics = metrics
        self._check = check

    def gets(self, ready: Handler) -> dict[str, Handler]:
        routes: dict[str, Handler] = {"/version": self.version, "/ping": ready, "/load": self.load}
        # Two names: ours, and SGLang's.
        return routes if self._check is None else routes | {"/health/generate": self.generates, "/health_generate": self.generates}

    async def version(self, request: web.Request) -> web.Response:
        try:
            found = self._manager.info.version
        except RuntimeError:
            # The engine has not been up yet.
            self._manager.check_health()
            raise
        return _json(Version(found))

    async def load(self, request: web.Request) -> web.Response:
        found = (await self._metrics()).statistics
        limit = None if found.admission is None else found.admission.limit
        return _json(ServerLoad(found.open, found.running, waiting(found), limit))

    async def generates(self, request: web.Request) -> web.Response:
        assert self._check is not None
        await self._check()
        return _json(Checked())


def waiting(statistics: ManagerStatistics) -> int:
    """Requests that wait for a slot of ours, and those that the engine has not begun."""
    return statistics.waiting + statistics.engine.waiting


def report_load(metrics: GetMetrics) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """For `Application.on_response_prepare`: adds ORCA's header to the responses of requests that ask for it, and to no other."""
    latest: tuple[float, str, str] = (-FRESH_SECONDS, "", "")

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        nonlocal latest
        form = request.headers.get(ASK_HEADER, "").upper()
        # Without a key a client learns nothing of the load.
        if form not in FORMATS or CALLER not in request or route_of(request) in OPEN:
            return
        now = asyncio.get_running_loop().time()
        if now - latest[0] >= FRESH_SECONDS:
            try:
                latest = (now, *_orca((await metrics()).statistics))
            except LLMServeError:
                # An answer without its header is better than none.
                return
        response.headers[LOAD_HEADER] = latest[1] if form == "TEXT" else latest[2]

    return add


def _orca(statistics: ManagerStatistics) -> tuple[str, str]:
    """The load as TEXT and as JSON, of https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto."""
    named = {
        "kv_cache_usage_perc": float(statistics.engine.kv_usage),
        "num_requests_waiting": float(waiting(statistics)),
        "num_requests_running": float(statistics.running),
    }
    report: dict[str, float] = {}
    limit = None if statistics.admission is None else statistics.admission.limit
    if limit:
        # More than 1 while requests wait, which the specification allows.
        report["application_utilization"] = round((statistics.running + statistics.waiting) / limit, 4)
    pairs = [*report.items(), *((f"named_metrics.{name}", value) for name, value in named.items())]
    as_json = msgspec.json.encode({**report, "named_metrics": named}).decode()
    return "TEXT " + ", ".join(f"{name}={value}" for name, value in pairs), f"JSON {as_json}"


def _json(body: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def check_of(manager: EngineManager, interval: float | None, metrics: GetMetrics | None = None) -> GenerateCheck | None:
    """What `--generate-check` asks for."""
    return GenerateCheck(manager, interval, metrics) if interval else None
