"""The routes of the metrics: /metrics for Prometheus, /metrics.json for everyone else."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from aiohttp import web

from frontends.http.health import GetMetrics
from frontends.http.request_checks import Handler
from frontends.http.responses import JSON, json_response

if TYPE_CHECKING:
    from prometheus_client import Metric

GetSeries = Callable[[], Awaitable[Iterable["Metric"]]]


class MetricsRoutes:
    """The handlers. `series` returns other metrics for the text; None for those of this process."""

    def __init__(self, metrics: GetMetrics, series: GetSeries | None) -> None:
        self._metrics = metrics
        self._series = series or _series_of_this_process

    def routes(self) -> dict[str, Handler]:
        return {"GET /metrics": self.metrics, "GET /metrics.json": self.metrics_json}

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ", ".join(request.headers.getall("Accept", []))
        if _asks_for_json(accept):
            return await self.metrics_json(request)
        from llmserve.observability import prometheus

        metrics, now = await self._metrics(), asyncio.get_running_loop().time()
        text, content_type = prometheus.render(metrics, now, accept, await self._series())
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def metrics_json(self, request: web.Request) -> web.Response:
        metrics = await self._metrics()
        return json_response(metrics.snapshot(asyncio.get_running_loop().time()))


async def _series_of_this_process() -> "Iterable[Metric]":
    from llmserve.observability import prometheus

    return prometheus.registered()


def _asks_for_json(accept: str) -> bool:
    """Return whether an Accept header names JSON and neither Prometheus format.

    curl and routers for vLLM send `*/*` or no header, and expect Prometheus's text.
    """
    named = accept.lower()
    return JSON in named and "text/plain" not in named and "openmetrics" not in named
