"""Prometheus and OpenMetrics text: llmserve's own series, and beside them whatever the process has registered already.

vLLM registers its `vllm:*` series in the process's default registry, so dashboards made for vLLM keep working.
"""

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import attrs

from llmserve.errors import InvalidRequest
from llmserve.observability.nvml import GPUCollector

if TYPE_CHECKING:
    from prometheus_client import Metric

    from llmserve.observability.metrics import LogHistogram
    from llmserve.observability.snapshot import MetricsSnapshot

# prometheus_client's own: the folder through which processes share what they count.
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){0,2} *", re.ASCII)

# Seconds. From a millisecond, because small models answer in less than vLLM's own first bucket of 300 ms.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# Beyond those, up to how long the operator lets a request take: otherwise every quantile of slow requests is "more than 300 s".
LONG_BUCKETS = (600.0, 1200.0, 1800.0, 3600.0, 7200.0, 10_800.0)
# From a tenth of a millisecond: gaps between tokens.
GAP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def latency_buckets(max_seconds: float | None) -> tuple[float, ...]:
    """Upper bounds in seconds, the last of them at least `max_seconds`, or as far as `LogHistogram` measures; None is no limit."""
    lower = (LATENCY_BUCKETS[-1], *LONG_BUCKETS)
    long = [bound for before, bound in zip(lower, LONG_BUCKETS, strict=False) if max_seconds is None or before < max_seconds]
    return (*LATENCY_BUCKETS, *long)


class SnapshotCollector:
    """A `prometheus_client` collector over what one or several managers know."""

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
            yield _histogram("llmserve_inter_token_latency_seconds", "Gap a token, weighted by tokens.", recorder.itl, GAP_BUCKETS)
            yield _histogram("llmserve_time_per_output_token_seconds", "(Last - first) / (tokens - 1).", recorder.tpot, GAP_BUCKETS)
            yield _histogram("llmserve_request_seconds", "Arrival to end.", recorder.e2e, latencies)
            yield _histogram("llmserve_queue_seconds", "Arrival to admission.", recorder.queue, latencies)


def _requests(snapshot: dict[str, Any]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily

    outcomes = [((name,), count) for name, count in snapshot.get("requests", {}).items() if name not in ("total", "per_second")]
    yield _counters("llmserve_requests", "Requests by how they ended.", ("outcome",), outcomes)
    tenants = snapshot.get("tenants", {}).items()
    requests = [((tenant, outcome), count) for tenant, counts in tenants for outcome, count in counts["requests"].items()]
    yield _counters("llmserve_tenant_requests", "Requests by tenant and how they ended.", ("tenant", "outcome"), requests)
    tokens = [((tenant, kind), count) for tenant, counts in tenants for kind, count in counts["tokens"].items()]
    yield _counters("llmserve_tenant_tokens", "Tokens by tenant, in and out.", ("tenant", "kind"), tokens)
    refused = [((reason,), count) for reason, count in snapshot["admission"].get("refused", {}).items()]
    yield _counters("llmserve_refused", "Refusals by reason.", ("reason",), refused)
    held = [((constraint,), count) for constraint, count in snapshot["admission"].get("held", {}).items()]
    yield _counters("llmserve_held", "How often the head of the line was held back, by constraint.", ("constraint",), held)
    for name in ("prompt", "completion", "cached"):
        yield CounterMetricFamily(f"llmserve_{name}_tokens", f"Tokens: {name}.", value=snapshot.get("tokens", {}).get(name, 0))
    met = snapshot.get("goodput", {}).get("met", 0)
    yield CounterMetricFamily("llmserve_slo_met", "Completed requests that met the SLO.", value=met)


def _state(snapshot: dict[str, Any]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    admission = snapshot["admission"]
    yield GaugeMetricFamily("llmserve_requests_running", "Requests that hold a slot.", value=admission.get("running", 0))
    yield GaugeMetricFamily("llmserve_requests_waiting", "Requests that wait for a slot.", value=admission.get("waiting", 0))
    yield _build()
    yield GaugeMetricFamily("llmserve_ready", "1 while requests are taken.", value=float(snapshot["state"] == "ready"))
    yield CounterMetricFamily("llmserve_engine_restarts", "How often the engine was started again.", value=snapshot["restarts"])
    lines = [((log,), count) for log, count in snapshot["dropped_lines"].items()]
    yield _counters("llmserve_log_lines_dropped", "Lines that a log lost because it could not be written.", ("log",), lines)
    for name, value in snapshot["engine"].items():
        family = GaugeMetricFamily if name in ("running", "waiting", "kv_usage") else CounterMetricFamily
        yield family(f"llmserve_engine_{name}", f"The engine's own figure: {name}.", value=value)


def _build() -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily("llmserve_build_info", "Always 1; the label is the version of llmserve.", labels=["version"])
    family.add_metric([version("llmserve")], 1)
    return family


def _counters(name: str, text: str, labels: tuple[str, ...], counts: Sequence[tuple[tuple[str, ...], int]]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts:
        family.add_metric(values, count)
    return family


def render(facts: "MetricsSnapshot", now: float, accept: str, beside: Iterable["Metric"] = ()) -> tuple[bytes, str]:
    """The text, and its content type, for a scraper that sent this Accept header; `beside` our own series those of others.

    Raises InvalidRequest for a header that cannot be understood.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    # It is parsed there as a number, and sent back in the Content-Type.
    if any(not _VERSION.fullmatch(version) for version in re.findall("version=([^;,]*)", accept)):
        raise InvalidRequest("a version in the Accept header must be numbers with dots, such as 1.0.0", "Accept")
    encode, content_type = choose_encoder(accept)
    # All in one registry, because an OpenMetrics text has one end, and cannot be joined from two.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(facts, now))
    registry.register(_Found(with_our_queue(beside, facts.statistics.waiting)))
    return encode(registry), content_type


def registered() -> list["Metric"]:
    """What this process has registered, or all of those that share what they count, and what its GPUs do."""
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry(auto_describe=False)
    registry.register(GPUCollector())
    # Where an embedding program has set it to what is no folder, there is nothing to collect from it, and its own registry is left.
    if os.path.isdir(os.environ.get(MULTIPROCESS, "")):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client annotates most, not this
    else:
        registry.register(REGISTRY)
    return list(registry.collect())


def labelled(label: str, parts: Mapping[str, Iterable["Metric"]]) -> list["Metric"]:
    """The series of several processes, by the label's value, as those of one."""
    from prometheus_client import Metric

    families: dict[str, Metric] = {}
    for value, metrics in parts.items():
        for one in metrics:
            family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type, one.unit))
            family.samples += [sample._replace(labels={**sample.labels, label: value}) for sample in one.samples]
    return list(families.values())


@attrs.frozen(eq=False)
class _Found:
    """A collector of what has been collected."""

    metrics: Iterable["Metric"]

    def collect(self) -> Iterator["Metric"]:
        return iter(self.metrics)


# What endpoint pickers and autoscalers made for vLLM read as its queue. Admission keeps requests out of the engine's own queue, so the
# engine's figure alone says that a full server is idle.
QUEUES = ("vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason")


def with_our_queue(metrics: Iterable["Metric"], waiting: int) -> list["Metric"]:
    """The series of others, where vLLM's counts of waiting requests include the `waiting` ones of ours.

    Several engines share them evenly, so that the sum over engines is right. By reason they wait for capacity.
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
    """Bring what this process has kept back to where the others read it."""
    from prometheus_client import REGISTRY

    for _ in REGISTRY.collect():
        pass


def _histogram(name: str, text: str, data: "LogHistogram", buckets: tuple[float, ...]) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily

    counts = [(str(bound), data.count_below(bound)) for bound in buckets]
    return HistogramMetricFamily(name, text, buckets=[*counts, ("+Inf", data.count)], sum_value=data.total)
