"""What the engine and the host reported of each load of a sweep, and which cause it indicates. Pure."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from benchmarks.analysis.steady_state import Floats
from benchmarks.analysis.summary import Distribution, Summary
from benchmarks.recording.results import Point, Sample

# A fuller cache refuses or preempts; a busier core has no reserve; a less busy GPU waits for a
# process.
FULL_SHARE = 0.95
BUSY_SHARE = 0.85
IDLE_GPU_SHARE = 0.75
# Fewer requests on average wait only between two steps.
QUEUE = 0.5
# A latency that grows by less is no cause.
GROWTH = 1.1


@attrs.frozen(kw_only=True)
class Evidence:
    """Figures of one point's engine and host, None where they were not reported.

    Attributes:
        full_batch: Number of running requests, if it was constant while others waited.
        cache_hits: Share of the prompt tokens that the engine found in its prefix cache.
    """

    running: int | None
    waiting: float | None
    kv_usage: float | None
    preemptions: int | None
    host_cpu: float | None
    engine_cpu: float | None
    gpu: float | None
    watts: float | None = None
    admission_waiting: float | None = None
    full_batch: int | None = None
    cache_hits: float | None = None

    def __str__(self) -> str:
        told = [
            None if self.running is None else f"{self.running} running",
            None if self.waiting is None else f"{self.waiting:.1f} waiting on average",
            None if not self.admission_waiting else f"{self.admission_waiting:.1f} waiting for admission",
            None if self.kv_usage is None else f"KV cache {self.kv_usage:.0%} full",
            None if self.preemptions is None else f"{self.preemptions} preemptions",
            None if self.host_cpu is None else f"host process {self.host_cpu:.0%} of a core",
            None if self.engine_cpu is None else f"engine process {self.engine_cpu:.0%}",
            None if self.gpu is None else f"GPU busy {self.gpu:.0%} of the time",
            None if self.watts is None else f"GPUs draw {self.watts:,.0f} W",
            None if self.cache_hits is None else f"{self.cache_hits:.0%} of the prompt tokens from the prefix cache",
        ]
        return ", ".join(part for part in told if part is not None) or "the server reported nothing"


def gather(point: Point, samples: Sequence[Sample], window: tuple[float, float]) -> Evidence:
    """Return peaks over the point and means over its window.

    The host is the process that holds the engine's client.
    """
    inside = [sample for sample in samples if window[0] <= sample.time <= window[1]] or list(samples)

    def values(name: str, source: Sequence[Sample]) -> list[float]:
        return [value for sample in source if (value := getattr(sample, name)) is not None]

    running, kv, preemptions = values("running", samples), values("kv_usage", samples), values("preemptions", samples)
    waiting, admission, gpu = values("waiting", inside), values("admission_waiting", inside), values("gpu", inside)

    def spent(name: str) -> float | None:
        sums = [(sample.time, value) for sample in inside if (value := getattr(sample, name)) is not None]
        return (sums[-1][1] - sums[0][1]) / (sums[-1][0] - sums[0][0]) if len(sums) > 1 and sums[-1][0] > sums[0][0] else None

    return Evidence(
        running=int(max(running)) if running else None,
        waiting=float(np.mean(waiting)) if waiting else None,
        kv_usage=max(kv) if kv else None,
        preemptions=int(max(preemptions) - min(preemptions)) if preemptions else None,
        host_cpu=spent("host_cpu"),
        engine_cpu=spent("engine_cpu"),
        gpu=float(np.mean(gpu)) if gpu else None,
        watts=spent("energy"),
        admission_waiting=float(np.mean(admission)) if admission else None,
        full_batch=_full_batch(inside),
        cache_hits=_hit_rate(samples),
    )


def _full_batch(samples: Sequence[Sample]) -> int | None:
    """Return the number of running requests if it was constant in the samples with a queue.

    Between two steps one request less may run. Where prompts wait for their turn in a step instead,
    the number varies.
    """
    running = [sample.running for sample in samples if sample.waiting and sample.running]
    if len(running) < max(4, len(samples) / 2):
        return None
    most = max(running)
    return most if np.median(running) == most and np.quantile(running, 0.1) >= most - max(1, 0.1 * most) else None


def _hit_rate(samples: Sequence[Sample]) -> float | None:
    counted = [(sample.prefix_queries, sample.prefix_hits or 0) for sample in samples if sample.prefix_queries is not None]
    queries, hits = (counted[-1][which] - counted[0][which] for which in (0, 1)) if counted else (0, 0)
    return hits / queries if queries > 0 else None


@attrs.frozen
class Cause:
    """The cause of saturation: a short name, and a clause that completes "because ..."."""

    name: str
    clause: str

    @property
    def exhausted(self) -> bool:
        """Whether the cause is a resource that is used up."""
        return self.name in ("kv cache", "batch", "host process", "engine process")


def name_cause(evidence: Evidence, summary: Summary, first: Summary, engine: dict[str, Any] | None) -> Cause:
    """Name the cause, from the first point beyond the knee and the least loaded point (`first`).

    `engine` is None for a server of which only the URL is known.
    """
    found = _queue(evidence, engine) or _process(evidence) or _prefill(evidence, engine) or _latency(evidence, summary, first)
    return found or Cause("unknown", "neither the engine nor the host shows a cause")


def _queue(evidence: Evidence, engine: dict[str, Any] | None) -> Cause | None:
    limit = (engine or {}).get("max_num_seqs")
    waiting = evidence.waiting or 0.0
    if evidence.kv_usage is not None and (evidence.preemptions or evidence.kv_usage >= FULL_SHARE):
        return Cause("kv cache", f"the KV cache is full ({evidence.kv_usage:.0%}, {evidence.preemptions or 0} preemptions)")
    if limit is not None and evidence.running is not None and evidence.running >= limit and waiting > QUEUE:
        return Cause("batch", f"the batch is full: max_num_seqs is {limit} and {waiting:.1f} more requests wait on average")
    if limit is None and evidence.full_batch is not None and waiting > QUEUE:
        clause = f"the batch is full: the server runs {evidence.full_batch} requests at a time while {waiting:.1f} more wait on average"
        return Cause("batch", clause)
    if (evidence.admission_waiting or 0.0) > QUEUE:
        clause = f"admission lets at most {evidence.running} requests run while {evidence.admission_waiting:.1f} more wait on average"
        return Cause("admission", clause)
    return None


def _process(evidence: Evidence) -> Cause | None:
    if evidence.host_cpu is not None and evidence.host_cpu >= BUSY_SHARE:
        return Cause("host process", f"the Python process that holds the engine's client uses {evidence.host_cpu:.0%} of a core")
    if (evidence.engine_cpu or 0) >= BUSY_SHARE and evidence.gpu is not None and evidence.gpu < IDLE_GPU_SHARE:
        # vLLM's engine process spins, so a full core is no evidence by itself. An idle GPU beside
        # it is.
        clause = f"the GPU is busy only {evidence.gpu:.0%} of the time while the engine's process uses a full core"
        return Cause("engine process", clause)
    return None


def _prefill(evidence: Evidence, engine: dict[str, Any] | None) -> Cause | None:
    if evidence.waiting is None or evidence.waiting <= 1:
        return None
    budget = (engine or {}).get("max_num_batched_tokens")
    if budget is not None:
        return Cause("prefill", f"{evidence.waiting:.1f} requests wait for prefill in steps of at most {budget} tokens")
    return Cause("queue", f"{evidence.waiting:.1f} requests wait on average, and the server's metrics do not show for what")


def _latency(evidence: Evidence, summary: Summary, first: Summary) -> Cause | None:
    to_first, per_token = _growth(summary, first, "ttft"), _growth(summary, first, "tpot")
    if evidence.waiting is not None:
        clause = f"nothing waits, but a step of the engine takes {per_token:.1f} times as long as at the lowest load"
        return Cause("step time", clause) if per_token > GROWTH else None
    if max(to_first, per_token) <= GROWTH:
        return None
    clause = f"the time to first token is {to_first:.1f} times and the time per later token {per_token:.1f} times that of the lowest load; "
    clause += "the server reports no queue, so the cause shows only in the latency"
    return Cause("first token" if to_first > GROWTH * per_token else "step time", clause)


def _growth(summary: Summary, first: Summary, figure: str) -> float:
    now, before = getattr(summary, figure).at("p50"), getattr(first, figure).at("p50")
    return now / before if now and before else 0.0


@attrs.frozen(kw_only=True)
class Level:
    """One concurrency of a sweep, with its repeats combined.

    Attributes:
        summary: The figures of the first valid repeat.
        tokens_per_second: The highest throughput of the valid repeats.
    """

    concurrency: int
    summary: Summary
    tokens_per_second: float
    blocks: Floats
    evidence: Evidence
    valid: bool


def tail(summary: Summary, figure: str) -> float | None:
    """Return the p95 of `ttft` or `tpot` in seconds, or the p50 where the sample is too small."""
    distribution: Distribution = getattr(summary, figure)
    return distribution.at("p95") or distribution.at("p50")
