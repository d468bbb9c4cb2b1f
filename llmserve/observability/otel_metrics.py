"""Request metrics as OpenTelemetry instruments."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llmserve.observability.metrics import time_per_output_token
from llmserve.observability.prometheus import GAP_BUCKETS, latency_buckets
from llmserve.request import Outcome, Timeline

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, Observation

    from llmserve.state import ManagerStatistics


class Instruments:
    """The instruments of one meter. Times are in seconds, and every label is from a closed set."""

    def __init__(self, meter: "Meter") -> None:
        self._meter = meter
        self._duration = self._histogram("gen_ai.server.request.duration", "Arrival to end.", latency_buckets(None))
        self._first = self._histogram("gen_ai.server.time_to_first_token", "Arrival to first token.", latency_buckets(None))
        self._each = self._histogram("gen_ai.server.time_per_output_token", "Time per token after the first one.", GAP_BUCKETS)
        self._tokens = meter.create_counter("llmserve.tokens", "{token}", "Prompt and answer tokens of requests that have ended.")
        self._requests = meter.create_counter("llmserve.requests", "{request}", "Requests by outcome and reason.")

    def count(self, timeline: Timeline, outcome: Outcome, labels: Mapping[str, str]) -> None:
        """Count a request that has ended."""
        ended = labels if outcome is Outcome.COMPLETED else {**labels, "error.type": outcome.value}
        self._requests.add(1, {**ended, "llmserve.outcome": outcome.value, "llmserve.reason": timeline.reason})
        self._duration.record((timeline.finished or timeline.arrived) - timeline.arrived, ended)
        if timeline.first_token is not None:
            self._first.record(timeline.first_token - timeline.arrived, labels)
        each = time_per_output_token(timeline)
        if each is not None and outcome is Outcome.COMPLETED:
            self._each.record(each, labels)
        for kind, count in (("input", timeline.prompt_tokens), ("output", timeline.completion_tokens)):
            self._tokens.add(count, {**labels, "gen_ai.token.type": kind})

    def observe(self, statistics: "Callable[[], ManagerStatistics]") -> None:
        """Read these statistics at every export, which runs in a thread."""
        self._gauge("llmserve.requests.running", "{request}", "Requests that hold a slot.", lambda: statistics().running)
        self._gauge("llmserve.requests.waiting", "{request}", "Requests that wait for a slot.", lambda: statistics().waiting)
        self._gauge("llmserve.kv_cache.usage", "1", "Share of the KV cache in use.", lambda: statistics().engine.kv_usage)

    def _gauge(self, name: str, unit: str, text: str, read: Callable[[], float]) -> None:
        from opentelemetry.metrics import Observation

        def observations(_: Any) -> "Iterable[Observation]":
            return [Observation(read())]

        self._meter.create_observable_gauge(name, [observations], unit, text)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        return self._meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=buckets)
