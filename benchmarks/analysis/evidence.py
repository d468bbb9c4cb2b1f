"""What the engine and the host reported beyond the knee, and which cause it indicates. Pure."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from benchmarks.analysis.summary import Summary
from benchmarks.recording.results import Point, Sample

# A fuller cache refuses or preempts; a busier core has no reserve; a less busy GPU waits for a
# process.
FULL_SHARE = 0.95
BUSY_SHARE = 0.85
IDLE_GPU_SHARE = 0.75


@attrs.frozen(kw_only=True)
class Evidence:
    """Figures of one point's engine and host, None where they were not reported."""

    running: int | None
    waiting: float | None
    kv_usage: float | None
    preemptions: int | None
    host_cpu: float | None
    engine_cpu: float | None
    gpu: float | None
    watts: float | None = None

    def __str__(self) -> str:
        told = [
            None if self.running is None else f"{self.running} running",
            None if self.waiting is None else f"{self.waiting:.1f} waiting on average",
            None if self.kv_usage is None else f"KV cache {self.kv_usage:.0%} full",
            None if self.preemptions is None else f"{self.preemptions} preemptions",
            None if self.host_cpu is None else f"host process {self.host_cpu:.0%} of a core",
            None if self.engine_cpu is None else f"engine process {self.engine_cpu:.0%}",
            None if self.gpu is None else f"GPU busy {self.gpu:.0%} of the time",
            None if self.watts is None else f"GPUs draw {self.watts:,.0f} W",
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
    waiting, gpu = values("waiting", inside), values("gpu", inside)

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
    )


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
    """Name the cause, from the first point beyond the knee and the least loaded point (`first`)."""
    limit = (engine or {}).get("max_num_seqs")
    if evidence.kv_usage is not None and (evidence.preemptions or evidence.kv_usage >= FULL_SHARE):
        return Cause("kv cache", f"the KV cache is full ({evidence.kv_usage:.0%}, {evidence.preemptions or 0} preemptions)")
    if limit is not None and evidence.running is not None and evidence.running >= limit and (evidence.waiting or 0) > 0.5:
        return Cause("batch", f"the batch is full: max_num_seqs is {limit} and {evidence.waiting:.1f} more requests wait on average")
    if evidence.host_cpu is not None and evidence.host_cpu >= BUSY_SHARE:
        return Cause("host process", f"the Python process that holds the engine's client uses {evidence.host_cpu:.0%} of a core")
    if (evidence.engine_cpu or 0) >= BUSY_SHARE and evidence.gpu is not None and evidence.gpu < IDLE_GPU_SHARE:
        # vLLM's engine process spins, so a full core is no evidence by itself. An idle GPU beside
        # it is.
        clause = f"the GPU is busy only {evidence.gpu:.0%} of the time while the engine's process uses a full core"
        return Cause("engine process", clause)
    if evidence.waiting is not None and evidence.waiting > 1:
        budget = (engine or {}).get("max_num_batched_tokens")
        return Cause("prefill", f"{evidence.waiting:.1f} requests wait for prefill in steps of at most {budget or '?'} tokens")
    slower = (summary.tpot.at("p50") or 0.0) / (first.tpot.at("p50") or float("inf"))
    if slower > 1:
        return Cause("step time", f"nothing waits, but a step of the engine takes {slower:.1f} times as long as at the lowest load")
    return Cause("unknown", "neither the engine nor the host shows a cause")
