"""The stages of one request's time, and the protocol of tracers. Knows no OpenTelemetry."""

import logging
from collections.abc import Mapping
from typing import Protocol

from llmserve.request import GenerationRequest, Outcome, Timeline

logger = logging.getLogger(__name__)

# Each stage and the time at which it ends. If an engine does not report when it scheduled a
# request, that wait is part of `prefill`.
STAGES = {
    "tokenize": "tokenized",
    "queue": "submitted",
    "engine_queue": "engine_scheduled",
    "prefill": "first_token",
    "decode": "last_token",
}
# The time from the last token until everything that the request held is released.
RELEASE = "release"


def stages(timeline: Timeline) -> dict[str, float]:
    """Return the seconds of each stage of a finished request; their sum is finished minus arrived.

    A request that ended before its answer was complete ended in the last of these stages.
    """
    assert timeline.finished is not None
    found: dict[str, float] = {}
    before, under_way = timeline.arrived, "tokenize"
    following = dict(zip(STAGES, [*list(STAGES)[1:], "decode"], strict=True))
    for name, reading in STAGES.items():
        value = getattr(timeline, reading)
        if value is not None:
            found[name] = value - before
            before, under_way = value, following[name]
    if under_way == "engine_queue":
        # The engine reported no scheduling time for this request, so both stages count as prefill.
        under_way = "prefill"
    if timeline.outcome is Outcome.COMPLETED:
        under_way = RELEASE
    found[under_way] = found.get(under_way, 0.0) + timeline.finished - before
    return found


class Span(Protocol):
    """One request's part of a trace.

    `headers` are the W3C headers that name it; the engine attaches its own spans to it.
    """

    @property
    def headers(self) -> Mapping[str, str]: ...

    def end(self, timeline: Timeline) -> None:
        """End the span of a finished request, about which nothing will change."""


class Tracer(Protocol):
    """Gets each request when it arrives, in the event loop, so it must be quick."""

    def begin(self, request: GenerationRequest, timeline: Timeline) -> Span:
        """Begin a span. `request.trace_headers` name its parent, if the caller sent them."""


class NoTracer:
    """A tracer and span that do nothing."""

    headers: Mapping[str, str] = {}

    def begin(self, request: GenerationRequest, timeline: Timeline) -> Span:
        return self

    def end(self, timeline: Timeline) -> None:
        pass


class CarefulTracer:
    """Wraps a tracer so that its exceptions are logged and do not reach a request."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, request: GenerationRequest, timeline: Timeline) -> Span:
        try:
            return _CarefulSpan(self._tracer.begin(request, timeline))
        except Exception:
            logger.exception("the tracer %r failed", self._tracer)
            return NoTracer()


class _CarefulSpan:
    def __init__(self, span: Span) -> None:
        self._span = span
        self.headers = span.headers

    def end(self, timeline: Timeline) -> None:
        try:
            self._span.end(timeline)
        except Exception:
            logger.exception("the span %r failed", self._span)
