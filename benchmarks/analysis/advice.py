"""Which settings follow from a verdict on concurrencies: an admission limit, and the engine's. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.analysis.evidence import Cause, Level, tail
from benchmarks.analysis.knee import Knee, NoKnee

# Where doubling the load adds more throughput than this, the knee is no limit to set.
FLAT_GAIN = 0.1


def advice(
    levels: Sequence[Level],
    knee: Knee | NoKnee,
    kinds: Mapping[str, float],
    cause: Cause | None,
    beyond: Level,
    engine: dict[str, Any] | None,
) -> list[str]:
    """Return one sentence for each setting; `beyond` is the first load clearly beyond the knee."""
    found = [*_admission(levels, knee, kinds, beyond, engine)]
    seats = (engine or {}).get("max_num_seqs")
    if isinstance(knee, Knee) and seats is not None and seats > 2 * knee.high and _gain(knee) <= FLAT_GAIN:
        found.append(
            f"Engine: max_num_seqs={2 ** math.ceil(np.log2(knee.high))} is enough, instead of {seats}; a larger batch is not faster here."
        )
    return found + remedies(cause, engine)


def _admission(
    levels: Sequence[Level], knee: Knee | NoKnee, kinds: Mapping[str, float], beyond: Level, engine: dict[str, Any] | None
) -> list[str]:
    bounds = {kind: max(1, math.floor(at)) for kind, at in kinds.items() if kind in ("slo", "kv cache")}
    if isinstance(knee, Knee) and _gain(knee) <= FLAT_GAIN:
        bounds["knee"] = math.ceil(knee.concurrency)
    elif isinstance(knee, Knee) and not bounds:
        gains = f"doubling the load beyond it still adds {_gain(knee):.0%} of throughput"
        return [f"Admission: no limit follows from the knee, because {gains}. Choose by latency: pass --slo-ttft and --slo-tpot."]
    if not bounds:
        return []
    kind = min(bounds, key=lambda each: bounds[each])
    reasons = {"slo": "the SLO is met up to this concurrency", "kv cache": "the KV cache is full from this concurrency on"}
    limit, why = bounds[kind], reasons.get(kind) or _beyond_the_knee(beyond)
    at = min(levels, key=lambda level: abs(np.log2(level.concurrency / limit)))
    peak = max(level.tokens_per_second for level in levels)
    share, milliseconds = at.tokens_per_second / peak, (tail(at.summary, "ttft") or 0.0) * 1000
    setting = f"set --max-running {limit}" if engine is not None else f"let at most {limit} requests run (llmserve: --max-running {limit})"
    measured = f"concurrency {at.concurrency} gives {share:.0%} of the highest throughput, with a TTFT p95 of {milliseconds:.0f} ms"
    return [f"Admission: {setting}, because {why}. Measured: {measured}."]


def _beyond_the_knee(beyond: Level) -> str:
    waiting = (beyond.evidence.waiting or 0.0) + (beyond.evidence.admission_waiting or 0.0)
    return "further requests only wait" if waiting > 1 else "further requests add latency and hardly any throughput"


def _gain(knee: Knee) -> float:
    """Return the throughput that doubling the load adds beyond the knee."""
    return float(2**knee.after - 1)


def remedies(cause: Cause | None, engine: dict[str, Any] | None) -> list[str]:
    """Return what would move the limit that the cause names."""
    match cause.name if cause is not None else None:
        case "batch":
            seats = (engine or {}).get("max_num_seqs")
            name = f"max_num_seqs={seats}" if seats is not None else "the batch (vLLM: max_num_seqs)"
            return [f"Engine: {name} is the limit; a larger value helps as far as the KV cache and the step time allow."]
        case "admission":
            return ["Admission: its limit is below what was sent; a higher one (llmserve: --max-running) lets the engine run more."]
        case "host process":
            return ["Engine: the device has spare capacity; serve with several processes (llmserve: --workers), or data parallel managers."]
        case "engine process":
            return [
                "Engine: the device has spare capacity, but one process feeds it; serve with two engines on it (llmserve: --engines 2)."
            ]
        case "kv cache":
            return ["Engine: a larger KV cache (gpu_memory_utilization), a shorter max_model_len or a quantised cache would move the knee."]
    return []
