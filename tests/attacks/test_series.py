"""Values that clients choose create no series, in Prometheus or OpenTelemetry, on any protocol."""

import itertools

import anyio
import pytest
from attacks.canary import probe
from http_support import running_server
from msgspec import Raw, msgpack
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from socket_support import Served

from frontends.rawsocket import frames
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.frames import Cancel, Open
from frontends.rawsocket.server import open_server
from llmserve.observability.opentelemetry import OpenTelemetry

pytestmark = pytest.mark.anyio
COUNT = 100


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Watched:
    """Yield a server with both protocols, and a function that returns all its series."""

    def __init__(self):
        self.reader, self.spans = InMemoryMetricReader(), InMemorySpanExporter()
        traces = TracerProvider(shutdown_on_exit=False)
        traces.add_span_processor(SimpleSpanProcessor(self.spans))
        meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = OpenTelemetry(traces, meters, model="sim", provider="simulated")

    async def series(self, server):
        async with server.session.get("/metrics", headers={"Accept": "text/plain"}) as response:
            text = {line.rsplit(" ", 1)[0] for line in (await response.text()).splitlines() if not line.startswith("#")}
        scopes = [scope for resource in self.reader.get_metrics_data().resource_metrics for scope in resource.scope_metrics]
        metrics = [metric for scope in scopes for metric in scope.metrics]
        points = {(metric.name, frozenset(point.attributes.items())) for metric in metrics for point in metric.data.data_points}
        return text, points, {span.name for span in self.spans.get_finished_spans()}


def over_http(server, name):
    """Send requests in which every value that a client may choose is `name`."""
    short, session = {"prompt": "hi", "max_tokens": 1}, server.session
    headers = {"X-Request-Id": name, "User-Agent": name, "Idempotency-Key": name, "X-Made-Up": name, "Authorization": f"Bearer {name}"}
    yield session.post("/generate", json={**short, "adapter": name}, headers=headers)
    yield session.post("/generate", json={**short, "adapter": "sql", "tenant": name}, headers=headers)
    yield session.post("/generate", json={**short, "tenant": name, "priority": 3})
    yield session.post("/generate", json={**short, name: 1})
    yield session.post("/v1/completions", json={**short, "model": name, "user": name})
    yield session.post("/v1/completions", json={**short, "user": name})
    yield session.post("/v1/completions", json={**short, "user": name, "logit_bias": {"999999": 1}})
    yield session.post("/v1/chat/completions", json={"messages": [{"role": name, "content": name}], "max_tokens": 1, "user": name})
    yield session.get(f"/v1/models/{name}")
    yield session.get(f"/{name}?{name}={name}")
    yield session.request(name.upper(), "/v1/models")
    yield session.get("/metrics", headers={"Accept": f"text/{name}"})


async def over_frames(served, name):
    async with served.raw() as raw:
        for number, fields in enumerate(({"adapter": name}, {"tenant": name}, {name: 1}, {"adapter": "sql"}), start=1):
            raw.send(Open(number, 1000, Raw(msgpack.encode({"prompt": "hi", "max_tokens": 1, **fields}))))
            while not isinstance(await raw.read(), frames.End | frames.Error):
                pass
        raw.send(Open(9, 1000, Raw(msgpack.encode({"prompt": "hi", "max_tokens": 1500, "ignore_eos": True}))))
        raw.send(Cancel(9, name))
        while not isinstance(message := await raw.read(), frames.End | frames.Error):
            assert message is not None


async def test_made_up_values_make_no_series():
    watched, names = Watched(), (f"made-up-{number}" for number in itertools.count())
    async with (
        running_server(tracer=watched.tracer, adapters=("sql",), time_scale=0.05) as server,
        open_server(server.manager, "sim", [parse_address("tcp://127.0.0.1:0")]) as bound,
    ):
        served = Served(server.manager, bound)

        async def ask(name):
            for sent in over_http(server, name):
                async with sent as response:
                    assert response.status < 500
                    await response.read()
            await over_frames(served, name)

        await probe(server)
        await ask(next(names))
        before = await watched.series(server)
        for _ in range(COUNT):
            await ask(next(names))
        with anyio.fail_after(10):
            while server.manager.statistics().open:
                await anyio.sleep(0.01)
        assert await watched.series(server) == before
        models = {dict(labels).get("gen_ai.request.model") for _, labels in before[1]}
        assert models == {"sim", "sql", "other"}
