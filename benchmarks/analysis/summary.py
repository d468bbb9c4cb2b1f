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

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.analysis import remarks
from benchmarks.analysis.steady_state import Window, deliveries, sending_window, steady_window
from benchmarks.recording.results import Promise, RequestRecord

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


class Adapter(msgspec.Struct):
    """The figures of the requests for one LoRA adapter, or for the model itself."""

    requests: int
    answered: int
    ttft: Distribution
    tpot: Distribution
    e2e: Distribution


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
        failures: The most frequent failures with the server's messages.
        remarks: How tokens were counted, if not by the server for each chunk, and natural lengths.
        adapters: By name, or empty if no request was for an adapter; the model itself has an empty name.
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
    failures: list[str] = []
    remarks: list[str] = []
    adapters: dict[str, Adapter] = {}


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
    # An empty answer has no first token, and its user waited for its end.
    first = record.finished if record.first_token is None else record.first_token
    if record.outcome != "ok" or first is None:
        return False
    if promise.ttft is not None and first - record.intended > promise.ttft:
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
        e2e_service=distribution([last - (record.dispatched or 0.0) for record in ok if (last := record.last_token) is not None]),
        e2e_adjusted=distribution(each["e2e"] + [math.inf for record in records if record.outcome != "ok"]),
        lateness=distribution([record.dispatched - record.intended for record in records if record.dispatched is not None]),
        attainment=len(good) / len(records) if promised and records else None,
        goodput_per_second=sum(1 for record in inside if kept(record, promise)) / length if promised and length > 0 else None,
        failures=remarks.failures(records),
        remarks=remarks.remarks(records),
        adapters=by_adapter(records),
    )


def by_adapter(records: Sequence[RequestRecord]) -> dict[str, Adapter]:
    """Return the figures of each adapter, by name; none if no request was for an adapter."""
    names = sorted({record.adapter for record in records})
    parts = {name: [record for record in records if record.adapter == name] for name in names if names != [""]}
    return {
        name: Adapter(
            len(part),
            sum(1 for record in part if record.outcome == "ok"),
            **{figure: distribution(times_of(part)[figure]) for figure in ("ttft", "tpot", "e2e")},
        )
        for name, part in parts.items()
    }


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
    found = [gap for record in records for gap in record.gaps()]
    return [(end - begin) / tokens for begin, end, tokens in found], [tokens for _, _, tokens in found]


def tpot(record: RequestRecord) -> float | None:
    """Return the seconds per token after the first delivery; None if nothing came after it."""
    rest = sum(tokens for _, _, tokens in record.gaps())
    return (record.deliveries[-1][0] - record.deliveries[0][0]) / rest if rest else None
