"""Figures of a running server between two readings of its /metrics. Pure."""

import math
from collections import defaultdict
from collections.abc import Mapping

import attrs
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.recording.prometheus_text import parse_metrics

# Names of each distribution: ours first, then vLLM's, of which the last is that of older versions.
HISTOGRAMS = {
    "ttft": ("llmserve_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
    "itl": (
        "llmserve_inter_token_latency_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
    ),
    "queue": ("llmserve_queue_seconds", "vllm:request_queue_time_seconds"),
}
QUANTILES = {"p50": 0.5, "p95": 0.95}
TENANT_REQUESTS, TENANT_TOKENS = "llmserve_tenant_requests_total", "llmserve_tenant_tokens_total"
# Cumulative counts by upper bound in seconds.
Buckets = Mapping[float, float]


@attrs.frozen
class Reading:
    """One reading: gauges and counters by field, distributions, and tenants' counters by kind.

    The kinds are the outcomes of requests, and `prompt` and `completion` for tokens.
    """

    time: float
    fields: Mapping[str, float]
    histograms: Mapping[str, Buckets]
    tenants: Mapping[str, Mapping[str, float]]


def read(text: str, now: float) -> Reading:
    """Read a Prometheus text; `now` is a monotonic time in seconds. Raises ValueError."""
    buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    tenants: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                buckets[sample.name.removesuffix("_bucket")][float(sample.labels["le"])] += sample.value
            elif sample.name == TENANT_REQUESTS:
                tenants[sample.labels["tenant"]][sample.labels["outcome"]] += sample.value
            elif sample.name == TENANT_TOKENS:
                tenants[sample.labels["tenant"]][sample.labels["kind"]] += sample.value
    known = {field: next((buckets[name] for name in names if name in buckets), None) for field, names in HISTOGRAMS.items()}
    return Reading(now, parse_metrics(text), {field: found for field, found in known.items() if found}, tenants)


def rate(before: Reading, after: Reading, field: str) -> float:
    """Return the growth of a counter per second; NaN if it is not reported, or began again."""
    first, last = before.fields.get(field), after.fields.get(field)
    if first is None or last is None or last < first or after.time <= before.time:
        return math.nan
    return (last - first) / (after.time - before.time)


def quantile(before: Reading, after: Reading, field: str, share: float) -> float:
    """Return a quantile in seconds of what was counted between two readings; NaN if nothing was.

    It lies within a bucket, at its share between the bucket's bounds, as Prometheus reckons it.
    """
    new = after.histograms.get(field, {})
    old = before.histograms.get(field, {})
    bounds = sorted(new)
    counts = [new[bound] - old.get(bound, 0.0) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return math.nan
    wanted = share * counts[-1]
    index = next(place for place, count in enumerate(counts) if count >= wanted)
    low, below = (bounds[index - 1], counts[index - 1]) if index else (0.0, 0.0)
    if math.isinf(bounds[index]):
        return low
    inside = counts[index] - below
    return low + (bounds[index] - low) * ((wanted - below) / inside if inside else 1.0)


def tenants(before: Reading, after: Reading) -> dict[str, dict[str, float]]:
    """Return what each tenant was answered per second: requests, refusals, tokens; busiest first."""
    seconds = after.time - before.time
    found = {}
    for tenant, counts in after.tenants.items():
        old = before.tenants.get(tenant, {})
        grown = {kind: max(0.0, count - old.get(kind, 0.0)) / seconds for kind, count in counts.items()} if seconds > 0 else {}
        ended = sum(value for kind, value in grown.items() if kind not in ("prompt", "completion"))
        figures = {
            "requests": ended,
            "refused": grown.get("refused", 0.0),
            "prompt": grown.get("prompt", 0.0),
            "completion": grown.get("completion", 0.0),
        }
        found[tenant] = figures
    return dict(sorted(found.items(), key=lambda each: -each[1]["completion"]))
