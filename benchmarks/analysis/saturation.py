"""The verdict: where a model saturates, in which way, why, and which settings follow. Pure."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from benchmarks.analysis.advice import advice
from benchmarks.analysis.evidence import FULL_SHARE, Cause, Level, name_cause, tail
from benchmarks.analysis.knee import Knee, NoKnee, find_knee
from benchmarks.analysis.outcomes import SERVED_SHARE, failed_share, refused_share

# A latency saturates where its p95 exceeds this multiple of the p95 at the lowest load.
LATENCY_FACTOR = 4.0
ATTAINED = 0.99
# At the knee few requests wait yet, so the evidence comes from the first load clearly beyond the
# knee.
CLEARLY_BEYOND = 1.25
REFUSED_SHARE = 0.5


@attrs.frozen(kw_only=True)
class Saturation:
    """The saturation of one target with one shape of requests.

    Attributes:
        kinds: Concurrency at which each kind of saturation begins: throughput, latency, slo, kv
            cache, refusals.
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
    valid = [level for level in levels if level.valid and len(level.blocks)]
    if not valid:
        return None
    # Where most requests are refused, the window shows the refusals and not the load.
    usable = [level for level in valid if refused_share(level.summary) <= REFUSED_SHARE] or valid
    knee = find_knee([level.concurrency for level in usable], [level.blocks for level in usable])
    kinds = _kinds(usable) | _turned_away(valid)
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
    rest = _rest(levels, valid)
    return Saturation(
        knee=knee,
        kinds=kinds,
        binding=binding,
        cause=cause,
        evidence=f"at concurrency {beyond.concurrency}: {beyond.evidence}",
        peak=max(level.tokens_per_second for level in usable),
        verdict=_verdict(name, usable, knee, cause, beyond, rest),
        advice=advice(usable, knee, kinds, cause, beyond, engine),
    )


def _kinds(levels: Sequence[Level]) -> dict[str, float]:
    first = levels[0].summary
    latency = []
    for figure in ("ttft", "tpot"):
        least = tail(first, figure)
        if least:
            # mypy cannot infer the type of a lambda with a default.
            latency.append(_crossing(levels, lambda level, figure=figure: tail(level.summary, figure), LATENCY_FACTOR * least))  # type: ignore[misc]
    found = {
        "latency": min((at for at in latency if at is not None), default=None),
        "slo": _crossing(levels, lambda level: None if (kept := level.summary.attainment) is None else 1 - kept, 1 - ATTAINED),
        "kv cache": next(
            (float(level.concurrency) for level in levels if level.evidence.preemptions or (level.evidence.kv_usage or 0) >= FULL_SHARE),
            None,
        ),
    }
    return {kind: at for kind, at in found.items() if at is not None}


def _turned_away(levels: Sequence[Level]) -> dict[str, float]:
    at = next((level.concurrency for level in levels if refused_share(level.summary) > 1 - SERVED_SHARE), None)
    return {} if at is None else {"refusals": float(at)}


def _rest(levels: Sequence[Level], valid: Sequence[Level]) -> str:
    """Return sentences on the requests and the points that the verdict leaves out."""
    said = ""
    for word, share in (("refuses", refused_share), ("fails", failed_share)):
        worst = max(valid, key=lambda level: share(level.summary))
        if share(worst.summary) > 1 - SERVED_SHARE:
            said += f" The server {word} {share(worst.summary):.0%} of the requests at concurrency {worst.concurrency}."
    dropped = len(levels) - len(valid)
    return said + (f" {dropped} of {len(levels)} points are not valid and are ignored." if dropped else "")


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


def _verdict(name: str, levels: Sequence[Level], knee: Knee | NoKnee, cause: Cause | None, beyond: Level, rest: str) -> str:
    best = max(levels, key=lambda level: level.tokens_per_second)
    peak = f"{best.tokens_per_second:,.0f} tokens/s at concurrency {best.concurrency}"
    if isinstance(knee, NoKnee):
        full = f" At concurrency {beyond.concurrency}, {cause.clause}." if cause is not None else ""
        return f"{name}: no saturation point was found, because {knee.reason}.{full} The highest throughput is {peak}.{rest}"
    # The sum with 0.0 turns a rounded -0.0 into 0.0.
    gain = round(2**knee.after - 1, 2) + 0.0
    slower = (tail(beyond.summary, "ttft") or math.nan) / (tail(levels[0].summary, "ttft") or math.nan)
    reason = f", because {cause.clause}" if cause is not None else ""
    return (
        f"{name} saturates at concurrency {knee.concurrency:.0f} [{knee.low:.0f}, {knee.high:.0f}]{reason}. "
        f"Beyond this, doubling the load changes throughput by {gain:+.0%}. At concurrency {beyond.concurrency}, the TTFT p95 is "
        f"{slower:.1f} times that of the lowest load. The highest throughput is {peak}.{rest}"
    )
