"""Prometheus and OpenMetrics text: llmserve's own series, and all that the process has registered.

vLLM registers its `vllm:*` series in the process's default registry, so dashboards for vLLM work.
"""

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from llmserve.errors import InvalidRequest
from llmserve.observability.nvml import GPUCollector
from llmserve.runtime.version import __version__

if TYPE_CHECKING:
    from prometheus_client import Metric

    from llmserve.observability.metrics import LogHistogram
    from llmserve.observability.snapshot import MetricsSnapshot

# prometheus_client's variable for the folder through which processes share their counts.
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){0,2} *", re.ASCII)

# Seconds. They start at a millisecond, because small models answer within vLLM's own first bucket
# of 300 ms.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# Further buckets up to the operator's limit for a request. Otherwise every quantile of slow
# requests would be "more than 300 s".
LONG_BUCKETS = (600.0, 1200.0, 1800.0, 3600.0, 7200.0, 10_800.0)
# Seconds between tokens, from a tenth of a millisecond.
GAP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def latency_buckets(max_seconds: float | None) -> tuple[float, ...]:
    """Return upper bounds in seconds, up to at least `max_seconds`.

    None means no limit; the bounds then end at 10,800 s, which `LogHistogram` covers.
    """
    lower = (LATENCY_BUCKETS[-1], *LONG_BUCKETS)
    long = [bound for before, bound in zip(lower, LONG_BUCKETS, strict=False) if max_seconds is None or before < max_seconds]
    return (*LATENCY_BUCKETS, *long)


class SnapshotCollector:
    """A `prometheus_client` collector over the snapshot of one or several managers."""

    def __init__(self, facts: "MetricsSnapshot", now: float) -> None:
        self._facts = facts
        self._now = now

    def collect(self) -> Iterator["Metric"]:
        snapshot = self._facts.snapshot(self._now)
        yield from _requests(snapshot)
        yield from _state(snapshot)
        recorder = self._facts.recorder
        if recorder is not None:
            latencies = latency_buckets(recorder.max_seconds)
            yield _histogram("llmserve_time_to_first_token_seconds", "Arrival to first token.", recorder.ttft, latencies)
            yield _histogram("llmserve_inter_token_latency_seconds", "Time between tokens, weighted by tokens.", recorder.itl, GAP_BUCKETS)
            yield _histogram("llmserve_time_per_output_token_seconds", "Time per token after the first.", recorder.tpot, GAP_BUCKETS)
            yield _histogram("llmserve_request_seconds", "Arrival to end.", recorder.e2e, latencies)
            yield _histogram("llmserve_queue_seconds", "Arrival to admission.", recorder.queue, latencies)


def _requests(snapshot: dict[str, Any]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily

    outcomes = [((name,), count) for name, count in snapshot.get("requests", {}).items() if name not in ("total", "per_second")]
    yield _counters("llmserve_requests", "Requests by outcome.", ("outcome",), outcomes)
    tenants = snapshot.get("tenants", {}).items()
    requests = [((tenant, outcome), count) for tenant, counts in tenants for outcome, count in counts["requests"].items()]
    yield _counters("llmserve_tenant_requests", "Requests by tenant and outcome.", ("tenant", "outcome"), requests)
    tokens = [((tenant, kind), count) for tenant, counts in tenants for kind, count in counts["tokens"].items()]
    yield _counters("llmserve_tenant_tokens", "Prompt and completion tokens by tenant.", ("tenant", "kind"), tokens)
    refused = [((reason,), count) for reason, count in snapshot["admission"].get("refused", {}).items()]
    yield _counters("llmserve_refused", "Refusals by reason.", ("reason",), refused)
    held = [((constraint,), count) for constraint, count in snapshot["admission"].get("held", {}).items()]
    yield _counters("llmserve_held", "How often each constraint held the head of the queue.", ("constraint",), held)
    for name in ("prompt", "completion", "cached"):
        yield CounterMetricFamily(f"llmserve_{name}_tokens", f"Tokens: {name}.", value=snapshot.get("tokens", {}).get(name, 0))
    met = snapshot.get("goodput", {}).get("met", 0)
    yield CounterMetricFamily("llmserve_slo_met", "Completed requests that met the SLO.", value=met)


def _state(snapshot: dict[str, Any]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    admission = snapshot["admission"]
    yield GaugeMetricFamily("llmserve_requests_running", "Requests that hold a slot.", value=admission.get("running", 0))
    yield GaugeMetricFamily("llmserve_requests_waiting", "Requests that wait for a slot.", value=admission.get("waiting", 0))
    if admission.get("step_tokens"):
        words = "Maximum number of tokens in a step of the engine that admission has set."
        yield GaugeMetricFamily("llmserve_step_tokens", words, value=admission["step_tokens"])
    yield _build()
    yield GaugeMetricFamily("llmserve_ready", "1 while requests are accepted.", value=float(snapshot["state"] == "ready"))
    yield CounterMetricFamily("llmserve_engine_restarts", "Number of restarts of the engine.", value=snapshot["restarts"])
    lines = [((log,), count) for log, count in snapshot["dropped_lines"].items()]
    yield _counters("llmserve_log_lines_dropped", "Lines that a log lost because it could not be written.", ("log",), lines)
    for name, value in snapshot["engine"].items():
        family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
        yield family(f"llmserve_engine_{name}", f"The engine's own figure, of all engines together: {name}.", value=value)
    for name in snapshot["engines"][0] if snapshot["engines"] else ():
        family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
        each = family(f"llmserve_pool_{name}", f"Of each engine: {name}.", labels=["engine"])
        for number, figures in enumerate(snapshot["engines"]):
            each.add_metric([str(number)], float(figures[name]))
        yield each


# The engine's figures that are no counters.
GAUGES = ("up", "running", "waiting", "kv_usage")


def _build() -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily("llmserve_build_info", "Always 1; the label is the version of llmserve.", labels=["version"])
    family.add_metric([__version__], 1)
    return family


def _counters(name: str, text: str, labels: tuple[str, ...], counts: Sequence[tuple[tuple[str, ...], int]]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts:
        family.add_metric(values, count)
    return family


def render(facts: "MetricsSnapshot", now: float, accept: str, beside: Iterable["Metric"] = ()) -> tuple[bytes, str]:
    """Return the text and its content type for a scraper's Accept header.

    `beside` are the series of others to add to our own. Raises InvalidRequest for an invalid
    header.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    # The encoder parses the version as a number and sends it back in the Content-Type.
    if any(not _VERSION.fullmatch(version) for version in re.findall("version=([^;,]*)", accept)):
        raise InvalidRequest("a version in the Accept header must be numbers with dots, such as 1.0.0", "Accept")
    encode, content_type = choose_encoder(accept)
    # All series are in one registry, because an OpenMetrics text has one end marker and cannot be
    # joined from two.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(facts, now))
    registry.register(_Found(with_our_queue(beside, facts.statistics.waiting)))
    return encode(registry), content_type


def registered() -> list["Metric"]:
    """Return the series of this process, or of those that share counts, and of the GPUs."""
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry(auto_describe=False)
    registry.register(GPUCollector())
    # An embedding program may have set the variable to something that is not a folder. Then only
    # this process's registry counts.
    if os.path.isdir(os.environ.get(MULTIPROCESS, "")):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client annotates most, not this
    else:
        registry.register(REGISTRY)
    return list(registry.collect())


def labelled(label: str, parts: Mapping[str, Iterable["Metric"]]) -> list["Metric"]:
    """Merge the series of several processes, with the process as the value of `label`."""
    from prometheus_client import Metric

    families: dict[str, Metric] = {}
    for value, metrics in parts.items():
        for one in metrics:
            family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type, one.unit))
            family.samples += [sample._replace(labels={**sample.labels, label: value}) for sample in one.samples]
    return list(families.values())


@attrs.frozen(eq=False)
class _Found:
    """A collector of series that have already been collected."""

    metrics: Iterable["Metric"]

    def collect(self) -> Iterator["Metric"]:
        return iter(self.metrics)


# Endpoint pickers and autoscalers for vLLM read these series as its queue. Admission keeps requests
# out of the engine's own queue, so the engine's figures alone would show a full server as idle.
QUEUES = ("vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason")


def with_our_queue(metrics: Iterable["Metric"], waiting: int) -> list["Metric"]:
    """Add our `waiting` requests to vLLM's counts of waiting requests.

    They are divided evenly among several engines, so that the sum over the engines is right. By
    reason they wait for capacity.
    """
    found = []
    for one_family in metrics:
        family = copy.copy(one_family)
        if family.name in QUEUES:
            ours = [one for one in family.samples if one.labels.get("reason", "capacity") == "capacity"]
            shares = {id(one): waiting // len(ours) + (index < waiting % len(ours)) for index, one in enumerate(ours)}
            family.samples = [one._replace(value=one.value + shares.get(id(one), 0)) for one in family.samples]
        found.append(family)
    return found


def settle() -> None:
    """Write the counts that this process has kept back to where other processes read them."""
    from prometheus_client import REGISTRY

    for _ in REGISTRY.collect():
        pass


def _histogram(name: str, text: str, data: "LogHistogram", buckets: tuple[float, ...]) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily

    counts = [(str(bound), data.count_below(bound)) for bound in buckets]
    return HistogramMetricFamily(name, text, buckets=[*counts, ("+Inf", data.count)], sum_value=data.total)
