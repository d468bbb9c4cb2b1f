"""One request as an OpenTelemetry span, with its stages as events and as attributes in seconds."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmserve.observability.otel_metrics import Instruments
from llmserve.request import GenerationRequest, Outcome, Timeline
from llmserve.tracing import STAGES, stages

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed", "max_tokens")

# The model label of a request for an adapter that does not exist.
OTHER = "other"


class RequestSpan:
    """A span from a request's arrival to its release, when the request is counted too."""

    def __init__(
        self, tracer: "Tracer", instruments: Instruments, labels: Mapping[str, str], request: GenerationRequest, timeline: Timeline
    ) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._instruments = instruments
        # A span uses calendar time and a timeline uses monotonic time, so both are read once
        # together.
        self._began = time.time_ns()
        operation = "chat" if request.messages is not None else "text_completion"
        # A name that a client invents would create a new time series for ever.
        model = labels["gen_ai.request.model"] if request.adapter is None else timeline.adapter or OTHER
        self._labels = {**labels, "gen_ai.operation.name": operation, "gen_ai.request.model": model}
        # The parent comes from the request's own headers, never from the context of the calling
        # task.
        parent = TraceContextTextMapPropagator().extract(request.trace_headers, Context())
        attributes = {**self._labels, **dict(_asked(request))}
        self._span = tracer.start_span(f"{operation} {model}", parent, SpanKind.SERVER, attributes, start_time=self._began)
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, set_span_in_context(self._span, Context()))
        self.headers: Mapping[str, str] = headers

    def end(self, timeline: Timeline) -> None:
        outcome = timeline.outcome or Outcome.FAILED
        if self._span.is_recording():
            self._describe(timeline, outcome)
        self._span.end(self._at(timeline, timeline.finished or timeline.arrived))
        self._instruments.count(timeline, outcome, self._labels)

    def _describe(self, timeline: Timeline, outcome: Outcome) -> None:
        from opentelemetry.trace import StatusCode

        for name, reading in STAGES.items():
            value = getattr(timeline, reading)
            if value is not None:
                self._span.add_event(f"{name} done", timestamp=self._at(timeline, value))
        self._span.set_attributes({f"llmserve.stage.{name}": seconds for name, seconds in stages(timeline).items()})
        self._span.set_attributes(dict(_answered(timeline, outcome)))
        if outcome is not Outcome.COMPLETED:
            self._span.set_status(StatusCode.ERROR, timeline.reason or outcome.value)

    def _at(self, timeline: Timeline, reading: float) -> int:
        """Convert a time of the timeline to nanoseconds since 1970."""
        return self._began + round((reading - timeline.arrived) * 1e9)


def _asked(request: GenerationRequest) -> Iterator[tuple[str, Any]]:
    yield "gen_ai.response.id", request.request_id
    yield "llmserve.tenant", request.tenant
    yield "llmserve.priority", request.priority
    for name in SAMPLING:
        value = getattr(request.sampling, name)
        if value is not None:
            yield f"gen_ai.request.{name}", value


def _answered(timeline: Timeline, outcome: Outcome) -> Iterator[tuple[str, Any]]:
    yield "llmserve.outcome", outcome.value
    if timeline.reason:
        yield "llmserve.reason", timeline.reason
    if outcome is not Outcome.COMPLETED:
        yield "error.type", outcome.value
    if timeline.finish_reason is not None:
        yield "gen_ai.response.finish_reasons", (timeline.finish_reason,)
    yield "gen_ai.usage.input_tokens", timeline.prompt_tokens
    yield "gen_ai.usage.output_tokens", timeline.completion_tokens
    yield "gen_ai.usage.cache_read.input_tokens", timeline.cached_tokens
