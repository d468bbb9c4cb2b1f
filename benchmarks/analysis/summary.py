"""Figures from recordings. Pure; every figure is defined here only.

TTFT: first delivery minus the send. E2E: last delivery minus the send. TPOT: (last - first
delivery) / (tokens - tokens of the first delivery). ITL: each gap between deliveries divided by the
tokens that ended it, weighted by those tokens.

TTFT and E2E each exist twice. From the intended send, they are what a user would have waited. From
the actual send ("service"), they are what the server is responsible for. A stall in an open loop
shows in the tail of the former and hides in the latter.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.analysis.steady_state import Window, deliveries, sending_window, steady_window
from benchmarks.recording.results import Point, Promise, RequestRecord

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


class Quantile(msgspec.Struct):
    """A sample quantile and its distribution-free interval, from order statistics.

    The bounds are None where the sample is too small.
    """

    value: float
    low: float | None
    high: float | None


class Distribution(msgspec.Struct):
    """A distribution in seconds; `quantiles` holds only those that the sample size supports."""

    count: int
    mean: float | None
    quantiles: dict[str, Quantile]

    def at(self, name: str) -> float | None:
        return self.quantiles[name].value if name in self.quantiles else None


class Summary(msgspec.Struct):
    """The figures of one point.

    Throughput covers the window: the steady one, or the time of sending in an open loop. All other
    figures cover all requests of the point. Failures count as outcomes; in `e2e_adjusted` they are
    infinitely slow.

    Attributes:
        outcomes: Number of requests by outcome. An answer that missed the SLO is `slo_missed`, not
            `ok`.
        attainment: Share of all attempts that met the SLO; None without an SLO.
        goodput_per_second: Requests per second that met the SLO; None without an SLO.
    """

    requests: int
    outcomes: dict[str, int]
    window: Window
    tokens_per_second: float
    requests_per_second: float
    prompt_tokens: float
    output_tokens: float
    ttft: Distribution
    ttft_service: Distribution
    itl: Distribution
    tpot: Distribution
    e2e: Distribution
    e2e_service: Distribution
    e2e_adjusted: Distribution
    lateness: Distribution
    attainment: float | None
    goodput_per_second: float | None


def needed(share: float) -> int:
    """Return the minimum sample for an interval: 72 for p95, 368 for p99, 3688 for p99.9."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(max(share, 1 - share)))


def distribution(values: Sequence[float], weights: Sequence[int] | None = None) -> Distribution:
    """Summarize values, each counted `weights` times; the interval ignores the repetition."""
    if not len(values):
        return Distribution(0, None, {})
    found = np.asarray(values, dtype=np.float64)
    counted = np.ones(len(found)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(found, kind="stable")
    found, ranks = found[order], np.cumsum(counted[order])
    total = float(ranks[-1])
    mean = float(np.average(found, weights=counted[order])) if np.isfinite(found[-1]) else math.inf
    # A quantile without an interval is still shown while at least one value lies beyond it.
    shown = {name: share for name, share in QUANTILES.items() if len(found) * (1 - share) >= 1 or share == QUANTILES["p50"]}
    return Distribution(int(total), mean, {name: _quantile(found, ranks, share) for name, share in shown.items()})


def _quantile(values: npt.NDArray[np.float64], ranks: npt.NDArray[np.float64], share: float) -> Quantile:
    def at(part: float) -> float:
        return float(values[min(len(values) - 1, int(np.searchsorted(ranks, part * ranks[-1])))])

    if len(values) < needed(share):
        return Quantile(at(share), None, None)
    # Ranks by the normal approximation to the binomial, in units of values, not of their weights.
    spread = _Z * math.sqrt(len(values) * share * (1 - share)) / len(values)
    return Quantile(at(share), at(share - spread), at(share + spread))


def kept(record: RequestRecord, promise: Promise) -> bool:
    """Whether an answer is complete and met the SLO, from the intended send on."""
    if record.outcome != "ok" or record.first_token is None:
        return False
    if promise.ttft is not None and record.first_token - record.intended > promise.ttft:
        return False
    return promise.tpot is None or (tpot(record) or 0.0) <= promise.tpot


def summarize(records: Sequence[RequestRecord], *, open_loop: bool = False, promise: Promise = Promise()) -> Summary:  # noqa: B008 - frozen
    """Return all figures of one point; rates include leads, other figures exclude them."""
    start, end = window = sending_window(records) if open_loop else steady_window(records)
    length = end - start
    inside = [record for record in records if record.outcome == "ok" and record.finished is not None and start < record.finished <= end]
    times, counts = deliveries(records)
    tokens = float(counts[(times > start) & (times <= end)].sum())
    records = [record for record in records if not record.lead]
    ok = [record for record in records if record.outcome == "ok"]
    each = times_of(records)
    promised = promise != Promise()
    good = [record for record in ok if kept(record, promise)]
    outcomes = Counter(record.outcome for record in records if record.outcome != "ok")
    met = Counter({"ok": len(good), "slo_missed": len(ok) - len(good)})
    return Summary(
        requests=len(records),
        outcomes={name: count for name, count in (met + outcomes).items() if count},
        window=window,
        tokens_per_second=tokens / length if length > 0 else 0.0,
        requests_per_second=len(inside) / length if length > 0 else 0.0,
        prompt_tokens=float(np.mean([record.prompt_tokens for record in records])) if records else 0.0,
        output_tokens=float(np.mean([record.completion_tokens for record in ok])) if ok else 0.0,
        ttft=distribution(each["ttft"]),
        ttft_service=distribution(each["ttft_service"]),
        itl=distribution(*gaps(records)),
        tpot=distribution(each["tpot"]),
        e2e=distribution(each["e2e"]),
        e2e_service=distribution([record.deliveries[-1][0] - (record.dispatched or 0.0) for record in ok]),
        e2e_adjusted=distribution(
            [record.deliveries[-1][0] - record.intended if record.outcome == "ok" else math.inf for record in records]
        ),
        lateness=distribution([record.dispatched - record.intended for record in records if record.dispatched is not None]),
        attainment=len(good) / len(records) if promised and records else None,
        goodput_per_second=sum(1 for record in inside if kept(record, promise)) / length if promised and length > 0 else None,
    )


def times_of(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Return the requests' latencies in seconds, by the name of their distribution."""
    begun = [record for record in records if record.deliveries]
    ok = [record for record in begun if record.outcome == "ok"]
    return {
        "ttft": [record.deliveries[0][0] - record.intended for record in begun],
        "ttft_service": [record.deliveries[0][0] - (record.dispatched or 0.0) for record in begun],
        "tpot": [value for record in ok if (value := tpot(record)) is not None],
        "e2e": [record.deliveries[-1][0] - record.intended for record in ok],
    }


def gaps(records: Sequence[RequestRecord]) -> tuple[list[float], list[int]]:
    """Return each gap between deliveries in seconds per token, and the tokens that ended it."""
    found, weights = [], []
    for record in records:
        for (before, _), (after, count) in zip(record.deliveries, record.deliveries[1:], strict=False):
            found.append((after - before) / count)
            weights.append(count)
    return found, weights


def tpot(record: RequestRecord) -> float | None:
    """Return the seconds per token after the first delivery; None if nothing came after it."""
    rest = sum(count for _, count in record.deliveries[1:])
    return (record.deliveries[-1][0] - record.deliveries[0][0]) / rest if rest else None


@attrs.frozen(kw_only=True)
class Row:
    """One point of a table.

    Attributes:
        cache_hits: Share of the prompt tokens from the server's prefix cache; None if unknown.
        faults: Reasons why the point is not valid.
        state: What an open loop's rate did to the server, such as `over-saturated`, and a clause
            with the figures that show it; None where the server served the load.
    """

    point: Point
    summary: Summary
    cache_hits: float | None
    faults: Sequence[str]
    state: tuple[str, str] | None = None


def table(rows: Sequence[Row]) -> str:
    """Return Markdown: one line per point (latencies in ms), then which points are not valid or not served."""
    head = ["target", "load", "prompt", "requests", "ok", "tokens/s", "requests/s"]
    head += ["TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "TPOT p50", "E2E p50", "E2E p99", "cache hits", "valid"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    notes, unserved = [], []
    for row in rows:
        point, summary = row.point, row.summary
        figures = [(summary.ttft, "p50"), (summary.ttft, "p99"), (summary.itl, "p50"), (summary.itl, "p99")]
        figures += [(summary.tpot, "p50"), (summary.e2e, "p50"), (summary.e2e, "p99")]
        cells = [f"{value * 1000:.1f}" if (value := dist.at(name)) is not None else "-" for dist, name in figures]
        counts = [point.target, point.load, point.prompt, str(summary.requests), str(summary.outcomes.get("ok", 0))]
        rates = [f"{summary.tokens_per_second:.1f}", f"{summary.requests_per_second:.2f}"]
        cells.append("-" if row.cache_hits is None else f"{row.cache_hits:.0%}")
        valid = "no" if row.faults else row.state[0] if row.state is not None else "yes"
        lines.append(f"| {' | '.join([*counts, *rates, *cells, valid])} |")
        if row.faults:
            notes.append(f"- {point.target}, {point.load}, prompt {point.prompt}: {'; '.join(row.faults)}")
        elif row.state is not None:
            unserved.append(f"- {point.target}, {point.load}, prompt {point.prompt}: {row.state[0]}: {row.state[1]}")
    lines += ["", "Not valid:", "", *notes] if notes else []
    return "\n".join(lines + (["", "Not served (the latencies depend on the duration):", "", *unserved] if unserved else []))
