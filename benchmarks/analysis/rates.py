"""The verdict on a sweep over rates: how many requests per second a server serves, and why no more. Pure.

The knee lies between the highest steady rate and the first rate that the server does not serve.
What the server does serve beyond it refines the interval: a server with a backlog works at its
capacity.
"""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from benchmarks.analysis.advice import remedies
from benchmarks.analysis.backlog import Backlog
from benchmarks.analysis.evidence import Cause, Evidence, name_cause
from benchmarks.analysis.knee import NoKnee
from benchmarks.analysis.outcomes import SERVED_SHARE, failed_share, refused_share
from benchmarks.analysis.summary import Summary

# Student's 97.5 % quantile of the mean of twelve parts.
T_QUANTILE = 2.2
# No estimate of a rate is better than this share, however even its parts are.
MIN_MARGIN = 0.02
ATTAINED = 0.99


@attrs.frozen(kw_only=True)
class RateLevel:
    """One rate of a sweep, with its repeats combined.

    Attributes:
        rate: The rate that was asked for, in requests per second.
        sent: Requests per second that were sent within the judged span.
        served: Requests per second that the server produced, by parts of the span.
        state: `steady`, `undecided`, `over-saturated`, `refusing` or `failing`.
        summary: The figures of the first valid repeat.
        tokens_per_second: The highest throughput of the valid repeats.
    """

    rate: float
    sent: float
    served: list[float]
    state: str
    backlog: Backlog
    summary: Summary
    tokens_per_second: float
    evidence: Evidence

    @property
    def mean(self) -> float:
        return float(np.mean(self.served))

    @property
    def margin(self) -> float:
        error = np.std(self.served, ddof=1) / np.sqrt(len(self.served)) if len(self.served) > 1 else 0.0
        return max(T_QUANTILE * float(error), MIN_MARGIN * self.mean)


@attrs.frozen
class RateKnee:
    """The highest rate that the server serves, and its interval, in requests per second."""

    rate: float
    low: float
    high: float


@attrs.frozen(kw_only=True)
class RateSaturation:
    """The saturation of one target under open loops of one shape of requests."""

    knee: RateKnee | NoKnee
    cause: Cause | None
    evidence: str
    peak: float
    verdict: str
    advice: list[str]


def state(summary: Summary, backlog: Backlog) -> str:
    """Return what a rate does to the server, the worst first."""
    if backlog.trend == "over-saturated":
        return backlog.trend
    if refused_share(summary) > 1 - SERVED_SHARE:
        return "refusing"
    return "failing" if failed_share(summary) > 1 - SERVED_SHARE else backlog.trend


def above_capacity(summary: Summary, backlog: Backlog) -> str | None:
    """Return in one clause how a point shows that its rate is not served; None if it is."""
    match state(summary, backlog):
        case "over-saturated":
            counts = f"the requests in flight grow from {backlog.before} to {backlog.after}"
            said = f"of {backlog.sent:.3g} requests/s, {np.mean(backlog.served):.3g} are served, and {counts}"
            if backlog.ttft_before is None or backlog.ttft_after is None:
                return said
            return f"{said}; the median TTFT is {backlog.ttft_before:.2f} s in the first quarter and {backlog.ttft_after:.2f} s in the last"
        case "refusing":
            return f"the server refuses {refused_share(summary):.0%} of the requests"
        case "failing":
            return f"{failed_share(summary):.0%} of the requests fail"
    return None


def find_rate_knee(levels: Sequence[RateLevel]) -> tuple[RateKnee | NoKnee, RateLevel | None]:
    """Return the knee of levels in ascending order, and the first level that is not served."""
    over = [level for level in levels if level.state == "over-saturated"]
    # A server that serves more at another rate was only filling up at this one.
    filling = [level for level in over if any(other.mean > level.sent * (1 + MIN_MARGIN) for other in over if other is not level)]
    unserved = [level for level in levels if level.state not in ("steady", "undecided") and level not in filling]
    steady = [level for level in levels if level.state == "steady"]
    unclear = [f"{level.rate:.4g}/s" for level in levels if level.state == "undecided"]
    if not unserved and unclear:
        return NoKnee(f"at {', '.join(unclear)} the requests in flight grew, but not clearly: measure longer, or higher rates"), None
    if not unserved:
        return NoKnee(f"every rate up to {levels[-1].rate:.4g}/s was served: measure higher rates"), None
    first = unserved[0]
    last = next((level for level in reversed(steady) if level.rate < first.rate), None)
    if last is None:
        served = max(level.mean for level in unserved)
        reason = f"{first.rate:.4g}/s is not served, and no lower rate was measured to be steady: measure lower rates"
        return NoKnee(f"{reason} (at most {served:.3g} requests/s were served)"), first
    first = next((level for level in unserved if level.rate > steady[-1].rate), first)
    low, high = min(last.sent, last.mean), first.sent
    if first.state != "over-saturated":
        return RateKnee(low, low, high), first
    return _refined(low, high, max((level for level in over if level not in filling), key=lambda level: level.mean)), first


def _refined(low: float, high: float, capacity: RateLevel) -> RateKnee:
    """Narrow the interval by what is served at the rate that gets most out of the server."""
    least, most = capacity.mean - capacity.margin, capacity.mean + capacity.margin
    if most < low:
        # Overload costs throughput, so what is served beyond the knee is no measure of it.
        return RateKnee(low, low, high)
    at = min(max(capacity.mean, low), high)
    return RateKnee(at, min(max(low, least), at * (1 - MIN_MARGIN)), max(min(high, most), at * (1 + MIN_MARGIN)))


def rate_saturation(name: str, levels: Sequence[RateLevel], dropped: int, engine: dict[str, Any] | None) -> RateSaturation | None:
    """Judge the valid levels of a sweep in ascending order; None without one.

    `dropped` is the number of levels that are not valid.
    """
    if not levels:
        return None
    knee, first = find_rate_knee(levels)
    shown = first or levels[-1]
    cause = _cause(shown, levels[0], engine) if first is not None else None
    best = max(levels, key=lambda level: level.tokens_per_second)
    return RateSaturation(
        knee=knee,
        cause=cause,
        evidence=f"at {shown.rate:.4g}/s: {shown.evidence}",
        peak=best.tokens_per_second,
        verdict=_verdict(name, knee, cause, first, best, dropped),
        advice=_advice(levels, knee, first) + remedies(cause, engine),
    )


def _cause(shown: RateLevel, least: RateLevel, engine: dict[str, Any] | None) -> Cause | None:
    if shown.state != "over-saturated":
        return Cause(shown.state, f"{above_capacity(shown.summary, shown.backlog)} at {shown.rate:.4g}/s")
    found = name_cause(shown.evidence, shown.summary, least.summary, engine)
    return found if found.name != "unknown" else None


def _verdict(name: str, knee: RateKnee | NoKnee, cause: Cause | None, first: RateLevel | None, best: RateLevel, dropped: int) -> str:
    reason = f", because {cause.clause}" if cause is not None else ""
    if isinstance(knee, NoKnee):
        said = f"{name}: no highest rate was found, because {knee.reason}."
        said += f" The cause: {cause.clause}." if cause is not None else ""
    else:
        said = f"{name} serves at most {knee.rate:.3g} [{knee.low:.3g}, {knee.high:.3g}] requests/s{reason}."
    if first is not None and first.state == "over-saturated":
        said += f" At {first.rate:.4g}/s it is over-saturated: {above_capacity(first.summary, first.backlog)}."
    said += f" The highest throughput is {best.tokens_per_second:,.0f} tokens/s, at {best.rate:.4g}/s."
    return said + (f" {dropped} rates have no valid point and are ignored." if dropped else "")


def _advice(levels: Sequence[RateLevel], knee: RateKnee | NoKnee, first: RateLevel | None) -> list[str]:
    met = [level.rate for level in levels if level.state == "steady" and (level.summary.attainment or 0.0) >= ATTAINED]
    found = [f"SLO: it is met up to {max(met):.4g}/s, of the rates that were measured."] if met else []
    if first is not None and first.state == "over-saturated" and isinstance(knee, RateKnee):
        found.append(
            f"Admission: above {knee.low:.3g} requests/s the latency grows without end; "
            "refuse the excess (llmserve: --slo-ttft or --max-waiting), or add capacity."
        )
    return found
