"""Where one request's time went, and the seam to whoever draws that across services. Knows no OpenTelemetry."""

import logging
from collections.abc import Mapping
from typing import Protocol

from llmserve.request import GenerationRequest, Outcome, Timeline

logger = logging.getLogger(__name__)

# Each stage by the reading that ends it. Where an engine does not tell when it took a request up, that wait is part of `prefill`.
STAGES = {
    "tokenize": "tokenized",
    "queue": "submitted",
    "engine_queue": "engine_scheduled",
    "prefill": "first_token",
    "decode": "last_token",
}
# From the last token until everything that the request held was free again.
RELEASE = "release"


def stages(timeline: Timeline) -> dict[str, float]:
    """Seconds of each stage that a finished request went through; they sum to finished minus arrived.

    What ended before its answer was complete ended in the last of them.
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
        # It told nothing of this one: the stage is the one that both are without its word.
        under_way = "prefill"
    if timeline.outcome is Outcome.COMPLETED:
        under_way = RELEASE
    found[under_way] = found.get(under_way, 0.0) + timeline.finished - before
    return found


class Span(Protocol):
    """One request's part of a trace. `headers` name it, as W3C's, for the engine to hang its own parts on."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def end(self, timeline: Timeline) -> None:
        """The request has ended, and nothing about it will change any more."""


class Tracer(Protocol):
    """Told of each request when it arrives, in the event loop: must be quick."""

    def begin(self, request: GenerationRequest, timeline: Timeline) -> Span:
        """`request.trace_headers` say what it is part of, where somebody has said so."""


class NoTracer:
    """Traces nothing; its own span."""

    headers: Mapping[str, str] = {}

    def begin(self, request: GenerationRequest, timeline: Timeline) -> Span:
        return self

    def end(self, timeline: Timeline) -> None:
        pass


class CarefulTracer:
    """Another one, of which nothing that it raises reaches a request."""

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
