"""Figures from facts. Pure; every definition stands here once.

TTFT: first delivery minus the send. E2E: last delivery minus the send. TPOT: (last - first delivery) / (tokens - tokens of
the first delivery). ITL: each gap between deliveries divided by the tokens that ended it, weighted by those tokens.

Each of TTFT and E2E comes twice: from the intended send, which is what a user would have waited, and from the actual send
("service"), which is what the server can be blamed for. In an open loop a stall shows in the first tail and hides in the
second.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import msgspec

from benchmarks.results import Point, RequestRecord

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
# A span counts as steady while at least this share of the peak is in flight.
STEADY_SHARE = 0.9
# What lasts longer than this share of the whole is a dip of the load, and no moment between two requests.
DIP_SHARE = 0.01


class Quantile(msgspec.Struct):
    """A sample quantile and its distribution-free interval, from order statistics; None bounds where the sample is too small."""

    value: float
    low: float | None
    high: float | None


class Distribution(msgspec.Struct):
    """Seconds. `quantiles` holds only those that the sample is large enough to speak of at all."""

    count: int
    mean: float | None
    quantiles: dict[str, Quantile]

    def at(self, name: str) -> float | None:
        return self.quantiles[name].value if name in self.quantiles else None


class Summary(msgspec.Struct):
    """One point. Throughput is over the window (the steady one, or that of the sending in an open loop), the rest over all
    requests of the point; failures are outcomes, and in the `adjusted` E2E they are infinitely slow."""

    requests: int
    outcomes: dict[str, int]
    window: tuple[float, float]
    tokens_per_second: float
    requests_per_second: float
    ttft: Distribution
    ttft_service: Distribution
    itl: Distribution
    tpot: Distribution
    e2e: Distribution
    e2e_service: Distribution
    e2e_adjusted: Distribution
    lateness: Distribution


def needed(share: float) -> int:
    """The smallest sample with a two-sided interval for a quantile: 72 for p95, 368 for p99, 3688 for p99.9."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(max(share, 1 - share)))


def distribution(values: Sequence[float], weights: Sequence[int] | None = None) -> Distribution:
    """Of values, each counted `weights` times (the interval then takes no account of the repetition)."""
    pairs = sorted(zip(values, weights or [1] * len(values), strict=True))
    total = sum(weight for _, weight in pairs)
    if not total:
        return Distribution(0, None, {})
    mean = sum(value * weight for value, weight in pairs) / total
    # Below the guard for an interval a quantile is still shown while at least one value lies beyond it.
    shown = {name: share for name, share in QUANTILES.items() if len(pairs) * (1 - share) >= 1 or share == QUANTILES["p50"]}
    return Distribution(total, mean, {name: _quantile(pairs, total, share) for name, share in shown.items()})


def _quantile(pairs: list[tuple[float, int]], total: int, share: float) -> Quantile:
    value = _at_rank(pairs, share * total)
    if len(pairs) < needed(share):
        return Quantile(value, None, None)
    # Ranks by the normal approximation to the binomial, in units of values, not of their weights.
    spread = _Z * math.sqrt(len(pairs) * share * (1 - share)) / len(pairs)
    return Quantile(value, _at_rank(pairs, (share - spread) * total), _at_rank(pairs, (share + spread) * total))


def _at_rank(pairs: list[tuple[float, int]], rank: float) -> float:
    seen = 0
    for value, weight in pairs:
        seen += weight
        if seen >= rank:
            return value
    return pairs[-1][0]


def steady_window(records: Sequence[RequestRecord]) -> tuple[float, float]:
    """The longest span with at least 90 % of the peak in flight: without the ramp at the start and the drain at the end.

    A dip shorter than 1 % of the whole does not end a span: between a client's two requests there is a moment without one.
    """
    net: Counter[float] = Counter()
    for record in records:
        if record.dispatched is not None and record.finished is not None:
            net[record.dispatched] += 1
            net[record.finished] -= 1
    times = sorted(net)
    levels = list(itertools.accumulate(net[time] for time in times))
    if not times:
        return (0.0, 0.0)
    dip = DIP_SHARE * (times[-1] - times[0])
    peak = max(levels)
    spans: list[tuple[float, float]] = []
    for begin, end, level in zip(times, times[1:], levels, strict=False):
        if level < STEADY_SHARE * peak:
            continue
        if spans and begin - spans[-1][1] <= dip:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return max(spans, key=lambda span: span[1] - span[0], default=(0.0, 0.0))


def sending_window(records: Sequence[RequestRecord]) -> tuple[float, float]:
    """From the first to the last intended send: an open loop has no peak to hold, so its throughput is over all of its load."""
    intended = [record.intended for record in records]
    return (min(intended, default=0.0), max(intended, default=0.0))


def summarize(records: Sequence[RequestRecord], *, open_loop: bool = False) -> Summary:
    start, end = sending_window(records) if open_loop else steady_window(records)
    length = end - start
    ok = [record for record in records if record.outcome == "ok"]
    begun = [record for record in records if record.deliveries]
    tokens = sum(count for record in records for time, count in record.deliveries if start < time <= end)
    finished = sum(1 for record in ok if record.finished is not None and start < record.finished <= end)
    gaps, weights = _gaps(begun)
    return Summary(
        requests=len(records),
        outcomes=dict(Counter(record.outcome for record in records)),
        window=(start, end),
        tokens_per_second=tokens / length if length > 0 else 0.0,
        requests_per_second=finished / length if length > 0 else 0.0,
        ttft=distribution([record.deliveries[0][0] - record.intended for record in begun]),
        ttft_service=distribution([record.deliveries[0][0] - (record.dispatched or 0.0) for record in begun]),
        itl=distribution(gaps, weights),
        tpot=distribution([value for record in ok if (value := _tpot(record)) is not None]),
        e2e=distribution([record.deliveries[-1][0] - record.intended for record in ok]),
        e2e_service=distribution([record.deliveries[-1][0] - (record.dispatched or 0.0) for record in ok]),
        e2e_adjusted=distribution(
            [record.deliveries[-1][0] - record.intended if record.outcome == "ok" else math.inf for record in records]
        ),
        lateness=distribution([record.dispatched - record.intended for record in records if record.dispatched is not None]),
    )


def _gaps(records: Sequence[RequestRecord]) -> tuple[list[float], list[int]]:
    gaps, weights = [], []
    for record in records:
        for (before, _), (after, count) in zip(record.deliveries, record.deliveries[1:], strict=False):
            gaps.append((after - before) / count)
            weights.append(count)
    return gaps, weights


def _tpot(record: RequestRecord) -> float | None:
    rest = sum(count for _, count in record.deliveries[1:])
    return (record.deliveries[-1][0] - record.deliveries[0][0]) / rest if rest else None


def table(points: Sequence[tuple[Point, Summary]]) -> str:
    """Markdown: one line a point, milliseconds for latencies."""
    head = ["target", "load", "requests", "ok", "tokens/s", "requests/s"]
    head += ["TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "TPOT p50", "E2E p50", "E2E p99"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for point, summary in points:
        figures = [
            (summary.ttft, "p50"),
            (summary.ttft, "p99"),
            (summary.itl, "p50"),
            (summary.itl, "p99"),
            (summary.tpot, "p50"),
            (summary.e2e, "p50"),
            (summary.e2e, "p99"),
        ]
        cells = [f"{value * 1000:.1f}" if (value := dist.at(name)) is not None else "-" for dist, name in figures]
        counts = [point.target, point.load, str(summary.requests), str(summary.outcomes.get("ok", 0))]
        rates = [f"{summary.tokens_per_second:.1f}", f"{summary.requests_per_second:.2f}"]
        lines.append(f"| {' | '.join(counts + rates + cells)} |")
    return "\n".join(lines)
