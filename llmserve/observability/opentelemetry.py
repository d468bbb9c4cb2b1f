"""OpenTelemetry: a span per request with its stages, and metrics, over OTLP (HTTP, protobuf).

The names are those of OpenTelemetry's semantic conventions for generative AI (gen_ai.*), and
`llmserve.*` where those lack one. Prompts and answers are never sent. Of the client's own text
only the tenant and the request id are sent.
"""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from llmserve.errors import ConfigurationError
from llmserve.observability.otel_metrics import Instruments
from llmserve.observability.otel_spans import RequestSpan
from llmserve.request import GenerationRequest, Timeline
from llmserve.runtime.version import __version__
from llmserve.tracing import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from llmserve.state import ManagerStatistics

SCOPE = "llmserve"
# Longest time for an export, so that a collector that does not answer cannot delay the exit.
EXPORT_SECONDS = 5.0
METRICS_SECONDS = 10.0


class OpenTelemetry:
    """A `llmserve.Tracer` over the SDK's trace and metric providers.

    `model` is the name under which the model is served, and `provider` is the engine. It needs
    llmserve[telemetry]. Threads of the SDK send data every few seconds; `close()` sends the rest.
    """

    def __init__(self, traces: "TracerProvider", metrics: "MeterProvider", *, model: str, provider: str = "vllm") -> None:
        self._providers = traces, metrics
        self._tracer = traces.get_tracer(SCOPE)
        self._instruments = Instruments(metrics.get_meter(SCOPE))
        self._labels = {"gen_ai.provider.name": provider, "gen_ai.request.model": model}

    @classmethod
    def open(cls, endpoint: str, *, model: str, provider: str = "vllm") -> Self:
        """Make a tracer that sends to a collector, such as http://localhost:4318.

        The usual variables configure the rest: OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME,
        OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and so on. Raises ConfigurationError if the
        SDK is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigurationError(f"OpenTelemetry cannot be imported ({error}); install llmserve[telemetry]") from error

        resource = _resource()
        traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(traces_endpoint(endpoint), timeout=EXPORT_SECONDS)))
        exporter = OTLPMetricExporter(f"{endpoint.rstrip('/')}/v1/metrics", timeout=EXPORT_SECONDS)
        reader = PeriodicExportingMetricReader(exporter, METRICS_SECONDS * 1000, EXPORT_SECONDS * 1000)
        metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        return cls(traces, metrics, model=model, provider=provider)

    def begin(self, request: GenerationRequest, timeline: Timeline) -> Span:
        return RequestSpan(self._tracer, self._instruments, self._labels, request, timeline)

    def observe(self, statistics: "Callable[[], ManagerStatistics]") -> None:
        """Send the numbers of running and waiting requests with every export."""
        self._instruments.observe(statistics)

    def close(self) -> None:
        """Send the remaining data; blocks. The tracer must not be used afterwards."""
        with ThreadPoolExecutor() as threads:
            for provider in self._providers:
                threads.submit(provider.shutdown)


def traces_endpoint(endpoint: str) -> str:
    """Return the URL at which a collector accepts spans."""
    return f"{endpoint.rstrip('/')}/v1/traces"


def _resource() -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {"service.name": "llmserve", "service.version": __version__, "host.name": socket.gethostname()}
    # The environment overrides these values.
    return Resource.create(ours).merge(OTELResourceDetector().detect())
