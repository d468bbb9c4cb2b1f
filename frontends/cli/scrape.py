"""One scrape of a server's /metrics, and what two scrapes say about the time between them. Pure."""

import math
from collections.abc import Mapping

import attrs
from prometheus_client.parser import text_string_to_metric_families

# Our series, and vLLM's name of the same figure where it has one.
VLLM = {
    "llmserve_requests_running": "vllm:num_requests_running",
    "llmserve_requests_waiting": "vllm:num_requests_waiting",
    "llmserve_completion_tokens_total": "vllm:generation_tokens_total",
    "llmserve_prompt_tokens_total": "vllm:prompt_tokens_total",
    "llmserve_engine_kv_usage": "vllm:kv_cache_usage_perc",
    "llmserve_engine_preemptions_total": "vllm:num_preemptions_total",
    "llmserve_time_to_first_token_seconds_bucket": "vllm:time_to_first_token_seconds_bucket",
    "llmserve_inter_token_latency_seconds_bucket": "vllm:inter_token_latency_seconds_bucket",
    "llmserve_queue_seconds_bucket": "vllm:request_queue_time_seconds_bucket",
    "llmserve_request_seconds_bucket": "vllm:e2e_request_latency_seconds_bucket",
}


@attrs.frozen
class Scrape:
    """The series of one answer of /metrics.

    Attributes:
        at: Monotonic time of the scrape in seconds.
        series: By name, the value of each combination of labels.
    """

    at: float
    series: Mapping[str, Mapping[frozenset[tuple[str, str]], float]]

    @classmethod
    def parse(cls, text: str, at: float) -> "Scrape":
        """Read a Prometheus text. Raises ValueError if it is none."""
        series: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
        return cls(at, series)

    def _of(self, name: str) -> Mapping[frozenset[tuple[str, str]], float]:
        return self.series.get(name) or self.series.get(VLLM.get(name, ""), {})

    def total(self, name: str) -> float | None:
        """Return the sum of a series over its labels; None if the server does not have it."""
        values = self._of(name)
        return sum(values.values()) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of a series by the values of one label."""
        found: dict[str, float] = {}
        for labels, value in self._of(name).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found


def rate(now: Scrape, before: Scrape, name: str) -> float | None:
    """Return a counter's growth per second; None if the server does not have it."""
    new, old = now.total(name), before.total(name)
    if new is None or old is None or now.at <= before.at:
        return None
    # A restarted server counts from zero again.
    return max(0.0, new - old) / (now.at - before.at)


def rates(now: Scrape, before: Scrape, name: str, label: str) -> dict[str, float]:
    """Return a counter's growth per second by one label's values, without those that did not grow."""
    old, seconds = before.by(name, label), now.at - before.at
    grown = {key: value - old.get(key, 0.0) for key, value in now.by(name, label).items()}
    return {key: more / seconds for key, more in grown.items() if more > 0 and seconds > 0}


def quantile(now: Scrape, before: Scrape, name: str, share: float) -> float | None:
    """Return a quantile in seconds of what a histogram counted between two scrapes; None of nothing.

    The value is interpolated within its bucket, as Prometheus's `histogram_quantile` does.
    """
    old = before.by(f"{name}_bucket", "le")
    counts = sorted((float(bound), count - old.get(bound, 0.0)) for bound, count in now.by(f"{name}_bucket", "le").items())
    if not counts or counts[-1][1] <= 0:
        return None
    rank, low, below = share * counts[-1][1], 0.0, 0.0
    for bound, count in counts:
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low
