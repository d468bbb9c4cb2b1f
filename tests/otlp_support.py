"""A collector that accepts OTLP over HTTP and keeps what it gets."""

import gzip
from contextlib import asynccontextmanager

import anyio
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def plain(attributes):
    """Return protobuf's attributes as a dictionary."""
    return {one.key: _value(one.value) for one in attributes}


def _value(value):
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class Span:
    """One span as it arrived; times in seconds since 1970."""

    def __init__(self, span, resource):
        self.resource = resource
        self.name = span.name
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.kind = span.kind
        self.began, self.ended = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes = plain(span.attributes)
        self.events = [(one.name, one.time_unix_nano) for one in span.events]
        self.status = span.status

    @property
    def seconds(self):
        return (self.ended - self.began) / 1e9

    @property
    def stages(self):
        prefix = "llmserve.stage."
        return {name.removeprefix(prefix): value for name, value in self.attributes.items() if name.startswith(prefix)}


class Collector:
    def __init__(self):
        self.spans = []
        # The data points of the last export that had the metric, by its name.
        self.metrics = {}
        self.url = ""

    async def traces(self, request):
        sent = ExportTraceServiceRequest.FromString(await _body(request))
        for resource in sent.resource_spans:
            found = plain(resource.resource.attributes)
            self.spans += [Span(span, found) for scope in resource.scope_spans for span in scope.spans]
        return web.Response()

    async def take_metrics(self, request):
        sent = ExportMetricsServiceRequest.FromString(await _body(request))
        for resource in sent.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self.metrics[metric.name] = list(getattr(metric, metric.WhichOneof("data")).data_points)
        return web.Response()

    def requests(self):
        """Return llmserve's own spans."""
        return [span for span in self.spans if "llmserve.outcome" in span.attributes]

    async def has(self, count, seconds=20):
        """Wait until `count` requests have arrived."""
        with anyio.fail_after(seconds):
            while len(self.requests()) < count:
                await anyio.sleep(0.05)
        return self.requests()


async def _body(request):
    body = await request.read()
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


@asynccontextmanager
async def collector():
    found = Collector()
    app = web.Application()
    app.add_routes([web.post("/v1/traces", found.traces), web.post("/v1/metrics", found.take_metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield found
    finally:
        await runner.cleanup()
