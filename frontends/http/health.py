"""A health check that generates a token, and the load in ORCA's response headers."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import msgspec
from aiohttp import web

from frontends.http.authentication import CALLER, PAGES, PROBES, route_of
from llmserve import EngineManager, GenerationRequest, LLMServeError, MetricsSnapshot, Overloaded, Sampling, Unavailable
from llmserve.admission import Refusal
from llmserve.pooling.requests import GENERATE
from llmserve.state import ManagerStatistics

GetMetrics = Callable[[], Awaitable[MetricsSnapshot]]

# Maximum seconds of a check, as in SGLang. A probe may give up earlier; the check continues, and
# the next probe gets its result.
CHECK_SECONDS = 20.0
LOOK_SECONDS = 0.25
# Envoy reads these two formats, and vLLM writes them:
# https://github.com/envoyproxy/envoy/blob/main/source/common/orca/orca_parser.cc
FORMATS = frozenset({"TEXT", "JSON"})
ASK_HEADER, LOAD_HEADER = "endpoint-load-metrics-format", "endpoint-load-metrics"
# Seconds for which the metrics are reused in responses. With several workers they come from all
# workers.
FRESH_SECONDS = 0.1


class GenerateCheck:
    """Generates one token, at most once every `interval` seconds; probes in between get its result.

    A server at its limit refuses the check's request too. Then any token that the engine generates
    for another request counts as success.

    Args:
        interval: seconds between two checks, more than 0.
        metrics: returns the metrics of all workers that share the engine; None for a single
            process.
    """

    def __init__(self, manager: EngineManager, interval: float, metrics: GetMetrics | None = None) -> None:
        self._manager = manager
        self._interval = interval
        self._metrics = metrics
        self._next = 0.0
        self._check: asyncio.Task[bool] | None = None

    async def __call__(self) -> None:
        """Check the engine. Raises Unavailable, or as `EngineManager.check_health` does."""
        self._manager.check_health()
        loop = asyncio.get_running_loop()
        if self._check is None or (self._check.done() and loop.time() >= self._next):
            self._next = loop.time() + self._interval
            self._check = loop.create_task(self._ask())
        # Shielded: if this probe disconnects, others still wait for the same check.
        if not await asyncio.shield(self._check):
            raise Unavailable(f"the engine generated no token within {CHECK_SECONDS:g} s", retry_after=self._interval, reason=Refusal.SLOW)

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
        # Token 0 is in every vocabulary and needs no tokenizer.
        try:
            if GENERATE in self._manager.info.tasks:
                sampling = Sampling(max_tokens=1, temperature=0.0, detokenize=False)
                await self._manager.generate(GenerationRequest([0], sampling=sampling, tenant=self._tenant()))
            else:
                await self._manager.embed([0], tenant=self._tenant())
        except Overloaded:
            await anyio.sleep_forever()
        except LLMServeError:
            return False
        return True

    async def _another_s_token(self) -> bool:
        before: int | None = None
        while True:
            # Without the workers' metrics, this look proves nothing.
            with suppress(LLMServeError):
                metrics = await self._metrics() if self._metrics is not None else self._manager.metrics_snapshot()
                engine = metrics.statistics.engine
                # An engine that makes vectors reads prompts only.
                tokens = engine.generation_tokens if GENERATE in self._manager.info.tasks else engine.prompt_tokens
                before = tokens if before is None else before
                if tokens > before:
                    return True
            await anyio.sleep(LOOK_SECONDS)

    def _tenant(self) -> str:
        """Return a tenant that admission accepts; the operator may refuse unknown ones."""
        table = self._manager.config.admission.table
        return next(iter(table.named), "default") if table.default is None else "default"


def waiting(statistics: ManagerStatistics) -> int:
    """Return the number of requests in the manager's queue and in the engine's."""
    return statistics.waiting + statistics.engine.waiting


def report_load(metrics: GetMetrics) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Return a handler for `on_response_prepare` that adds the ORCA header to requests that ask."""
    latest: tuple[float, str, str] = (-FRESH_SECONDS, "", "")

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        nonlocal latest
        form = request.headers.get(ASK_HEADER, "").upper()
        # Clients without a key must not see the load.
        if form not in FORMATS or CALLER not in request or route_of(request) in PROBES | PAGES:
            return
        now = asyncio.get_running_loop().time()
        if now - latest[0] >= FRESH_SECONDS:
            try:
                latest = (now, *_orca((await metrics()).statistics))
            except LLMServeError:
                # The response is more important than its header.
                return
        response.headers[LOAD_HEADER] = latest[1] if form == "TEXT" else latest[2]

    return add


def _orca(statistics: ManagerStatistics) -> tuple[str, str]:
    """Return the load as TEXT and as JSON.

    See https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto.
    """
    named = {
        "kv_cache_usage_perc": float(statistics.engine.kv_usage),
        "num_requests_waiting": float(waiting(statistics)),
        "num_requests_running": float(statistics.running),
    }
    report: dict[str, float] = {}
    limit = None if statistics.admission is None else statistics.admission.limit
    if limit:
        # Above 1 while requests wait, which the specification allows.
        report["application_utilization"] = round((statistics.running + statistics.waiting) / limit, 4)
    pairs = [*report.items(), *((f"named_metrics.{name}", value) for name, value in named.items())]
    as_json = msgspec.json.encode({**report, "named_metrics": named}).decode()
    return "TEXT " + ", ".join(f"{name}={value}" for name, value in pairs), f"JSON {as_json}"


def check_of(manager: EngineManager, interval: float | None, metrics: GetMetrics | None = None) -> GenerateCheck | None:
    """Return the check for `--generate-check`; None without that option."""
    return GenerateCheck(manager, interval, metrics) if interval else None
