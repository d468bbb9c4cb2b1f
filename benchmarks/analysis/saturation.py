"""The verdict: where a model saturates, in which way, why, and which settings follow. Pure."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np

from benchmarks.analysis.evidence import FULL_SHARE, Cause, Evidence, name_cause
from benchmarks.analysis.knee import Knee, NoKnee, find_knee
from benchmarks.analysis.steady_state import Floats
from benchmarks.analysis.summary import Distribution, Summary

# A latency saturates where its p95 exceeds this multiple of the p95 at the lowest load.
LATENCY_FACTOR = 4.0
ATTAINED = 0.99
# At the knee few requests wait yet, so the evidence comes from the first load clearly beyond the
# knee.
CLEARLY_BEYOND = 1.25


@attrs.frozen(kw_only=True)
class Level:
    """One concurrency of a sweep, with its repeats combined."""

    concurrency: int
    summary: Summary
    blocks: Floats
    evidence: Evidence
    valid: bool


@attrs.frozen(kw_only=True)
class Saturation:
    """The saturation of one target with one shape of requests.

    Attributes:
        kinds: Concurrency at which each kind of saturation begins: throughput, latency, slo, kv
            cache.
        binding: The kind that begins first.
    """

    knee: Knee | NoKnee
    kinds: dict[str, float]
    binding: str | None
    cause: Cause | None
    evidence: str
    peak: float
    verdict: str
    advice: list[str]


def saturation(name: str, levels: Sequence[Level], engine: dict[str, Any] | None) -> Saturation | None:
    """Judge a sweep's levels, in ascending order; None without a valid level."""
    usable = [level for level in levels if level.valid and len(level.blocks)]
    if not usable:
        return None
    knee = find_knee([level.concurrency for level in usable], [level.blocks for level in usable])
    kinds = _kinds(usable)
    if isinstance(knee, Knee):
        kinds["throughput"] = knee.concurrency
    binding = min(kinds, key=lambda kind: kinds[kind], default=None)
    bound = knee.concurrency if isinstance(knee, Knee) else kinds.get("kv cache", usable[-1].concurrency)
    beyond = next((level for level in usable if level.concurrency > bound * CLEARLY_BEYOND), usable[-1])
    cause: Cause | None = name_cause(beyond.evidence, beyond.summary, usable[0].summary, engine)
    if isinstance(knee, NoKnee) and cause is not None and not cause.exhausted:
        # Waiting and longer steps come with every load. Without a knee, only an exhausted resource
        # is a cause.
        cause = None
    dropped = len(levels) - len(usable)
    return Saturation(
        knee=knee,
        kinds=kinds,
        binding=binding,
        cause=cause,
        evidence=f"at concurrency {beyond.concurrency}: {beyond.evidence}",
        peak=max(level.summary.tokens_per_second for level in usable),
        verdict=_verdict(name, usable, knee, cause, beyond, dropped),
        advice=_advice(usable, knee, kinds, cause, engine),
    )


def _kinds(levels: Sequence[Level]) -> dict[str, float]:
    first = levels[0].summary
    latency = []
    for figure in ("ttft", "tpot"):
        least = _tail(first, figure)
        if least:
            # mypy cannot infer the type of a lambda with a default.
            latency.append(_crossing(levels, lambda level, figure=figure: _tail(level.summary, figure), LATENCY_FACTOR * least))  # type: ignore[misc]
    found = {
        "latency": min((at for at in latency if at is not None), default=None),
        "slo": _crossing(levels, lambda level: None if (kept := level.summary.attainment) is None else 1 - kept, 1 - ATTAINED),
        "kv cache": next(
            (float(level.concurrency) for level in levels if level.evidence.preemptions or (level.evidence.kv_usage or 0) >= FULL_SHARE),
            None,
        ),
    }
    return {kind: at for kind, at in found.items() if at is not None}


def _tail(summary: Summary, figure: str) -> float | None:
    distribution: Distribution = getattr(summary, figure)
    return distribution.at("p95") or distribution.at("p50")


def _crossing(levels: Sequence[Level], value: Callable[[Level], float | None], bound: float) -> float | None:
    """Return the concurrency at which a value passes a bound, interpolated in the logarithm."""
    before: tuple[int, float] | None = None
    for level in levels:
        now = value(level)
        if now is None:
            continue
        if now > bound:
            if before is None:
                return float(level.concurrency)
            share = (bound - before[1]) / (now - before[1])
            return float(before[0] * (level.concurrency / before[0]) ** share)
        before = (level.concurrency, now)
    return None


def _verdict(name: str, levels: Sequence[Level], knee: Knee | NoKnee, cause: Cause | None, beyond: Level, dropped: int) -> str:
    best = max(levels, key=lambda level: level.summary.tokens_per_second)
    tail = f" {dropped} of {dropped + len(levels)} points are not valid and are ignored." if dropped else ""
    peak = f"{best.summary.tokens_per_second:,.0f} tokens/s at concurrency {best.concurrency}"
    if isinstance(knee, NoKnee):
        full = f" At concurrency {beyond.concurrency}, {cause.clause}." if cause is not None else ""
        return f"{name}: no saturation point was found, because {knee.reason}.{full} The highest throughput is {peak}.{tail}"
    gain = 2**knee.after - 1
    slower = (_tail(beyond.summary, "ttft") or math.nan) / (_tail(levels[0].summary, "ttft") or math.nan)
    reason = f", because {cause.clause}" if cause is not None else ""
    return (
        f"{name} saturates at concurrency {knee.concurrency:.0f} [{knee.low:.0f}, {knee.high:.0f}]{reason}. "
        f"Beyond this, doubling the load changes throughput by {gain:+.0%}. At concurrency {beyond.concurrency}, the TTFT p95 is "
        f"{slower:.1f} times that of the lowest load. The highest throughput is {peak}.{tail}"
    )


def _advice(
    levels: Sequence[Level], knee: Knee | NoKnee, kinds: dict[str, float], cause: Cause | None, engine: dict[str, Any] | None
) -> list[str]:
    bounds = [max(1, math.floor(at)) for kind, at in kinds.items() if kind in ("slo", "kv cache")]
    bounds += [math.ceil(knee.concurrency)] if isinstance(knee, Knee) else []
    return (_settings(levels, min(bounds), knee, kinds, engine) if bounds else []) + _remedies(cause, engine)


def _settings(
    levels: Sequence[Level], limit: int, knee: Knee | NoKnee, kinds: dict[str, float], engine: dict[str, Any] | None
) -> list[str]:
    at = min(levels, key=lambda level: abs(np.log2(level.concurrency / limit)))
    peak = max(level.summary.tokens_per_second for level in levels)
    why = "the SLO is met up to this concurrency" if kinds.get("slo", math.inf) <= limit + 1 else "further requests only wait"
    share, tail = at.summary.tokens_per_second / peak, (_tail(at.summary, "ttft") or 0.0) * 1000
    measured = f"concurrency {at.concurrency} gives {share:.0%} of the highest throughput, with a TTFT p95 of {tail:.0f} ms"
    found = [f"Admission: set --max-running {limit}, because {why}. Measured: {measured}."]
    seats = (engine or {}).get("max_num_seqs")
    if isinstance(knee, Knee) and seats is not None and seats > 2 * knee.high:
        found.append(
            f"Engine: max_num_seqs={2 ** math.ceil(np.log2(knee.high))} is enough, instead of {seats}; a larger batch is not faster here."
        )
    return found


def _remedies(cause: Cause | None, engine: dict[str, Any] | None) -> list[str]:
    match cause.name if cause is not None else None:
        case "batch":
            seats = (engine or {}).get("max_num_seqs")
            return [f"Engine: max_num_seqs={seats} is the limit; a larger value helps as far as the KV cache and the step time allow."]
        case "host process":
            return ["Engine: the device has spare capacity; serve with several processes (--workers), or with data parallel managers."]
        case "engine process":
            return ["Engine: the device has spare capacity, but one process feeds it; use data parallel engines on the same device."]
        case "kv cache":
            return ["Engine: a larger KV cache (gpu_memory_utilization), a shorter max_model_len or a quantised cache would move the knee."]
    return []
