"""OpenTelemetry: a span for each request with its stages, and metrics, sent to a collector over OTLP (HTTP, protobuf).

Names are those of OpenTelemetry's semantic conventions for generative AI (gen_ai.*), with `llmserve.*` for what those lack. No prompt
and no answer is sent, nor anything else that a client writes but its tenant and its request's name.
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
# A collector that does not answer keeps a leaving process no longer than this.
EXPORT_SECONDS = 5.0
METRICS_SECONDS = 10.0


class OpenTelemetry:
    """A `llmserve.Tracer` over the SDK's two providers. `model` is the name that it is served under, `provider` what generates.

    Needs llmserve[telemetry]. Threads of the SDK's send what there is every few seconds; `close()` sends the rest.
    """

    def __init__(self, traces: "TracerProvider", metrics: "MeterProvider", *, model: str, provider: str = "vllm") -> None:
        self._providers = traces, metrics
        self._tracer = traces.get_tracer(SCOPE)
        self._instruments = Instruments(metrics.get_meter(SCOPE))
        self._labels = {"gen_ai.provider.name": provider, "gen_ai.request.model": model}

    @classmethod
    def open(cls, endpoint: str, *, model: str, provider: str = "vllm") -> Self:
        """One that sends to a collector, such as http://localhost:4318.

        What else there is to say of the way is said as to every program, by OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME,
        OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and their kin. Raises ConfigurationError where the SDK is not installed.
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
        """Send, with every export, who runs and who waits."""
        self._instruments.observe(statistics)

    def close(self) -> None:
        """Send what is left; blocks. Nothing may be told to it afterwards."""
        with ThreadPoolExecutor() as threads:
            for provider in self._providers:
                threads.submit(provider.shutdown)


def traces_endpoint(endpoint: str) -> str:
    """Where a collector takes spans."""
    return f"{endpoint.rstrip('/')}/v1/traces"


def _resource() -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {"service.name": "llmserve", "service.version": __version__, "host.name": socket.gethostname()}
    # What the environment says counts for more.
    return Resource.create(ours).merge(OTELResourceDetector().detect())
