"""Whether the points of one load show that it meets the SLO, that it does not, or neither. Pure.

An open loop above capacity answers its first requests in time, so its share depends on its length.
A growing backlog therefore fails a load even if its share is high.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import attrs
import numpy as np

from benchmarks.analysis.report import View
from benchmarks.analysis.shares import wilson
from benchmarks.analysis.summary import kept, tpot
from benchmarks.recording.results import Goal, Promise, RequestRecord

# Each bound of a share holds with this probability.
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(CONFIDENCE)
# Requests that miss the SLO come in groups, so the parts of a run show the error of its share.
MAX_PARTS, MIN_IN_PART = 16, 8

# Certain to meet the SLO, probable, improbable, or certain to miss it.
Outcome = Literal["met", "likely", "unlikely", "missed"]


@attrs.frozen(kw_only=True)
class Verdict:
    """One load on one target.

    Attributes:
        low, high: Bounds of the share of requests that meet the SLO.
        growing: Whether the requests in flight of an open loop grew without end.
        margin: The latency in multiples of the SLO that as many requests keep as must meet it; None
            without an SLO, infinite if too few were answered.
        served: Requests per second that a growing backlog was served with.
        faults: Reasons why no point is valid.
        points: Number of measurements.
    """

    load: float
    outcome: Outcome
    met: int
    sent: int
    low: float
    high: float
    growing: bool
    margin: float | None
    served: float | None
    faults: tuple[str, ...]
    points: int

    @property
    def share(self) -> float:
        return self.met / self.sent if self.sent else 0.0


def needed(attainment: float) -> int:
    """Return the requests that show a share of `attainment` if all of them meet the SLO."""
    return math.ceil(Z * Z * attainment / (1 - attainment))


def judge(load: float, views: Sequence[View], attainment: float, promise: Promise) -> Verdict:
    """Judge all measurements of one load.

    Where none is valid, the load may still meet the SLO, because times count from the
    intended send. It cannot miss it, because the generator may be the reason.
    """
    certain = [view for view in views if view.valid]
    valid = certain or views
    records = [[record for record in view.traffic if not record.lead] for view in valid]
    flags = [_flags(view, part, promise) for view, part in zip(valid, records, strict=True)]
    met, sent = sum(map(sum, flags)), sum(map(len, flags))
    low, high = bounds([flag for part in flags for flag in part])
    trends = [view.backlog for view in valid if view.backlog is not None]
    growing = any(backlog.trend == "over-saturated" for backlog in trends)
    rising = bool(trends) and trends[-1].trend == "undecided"
    served = [rate for backlog in trends if backlog.trend == "over-saturated" for rate in backlog.served]
    outcome: Outcome = "unlikely"
    if sent and (growing or high < attainment):
        outcome = "missed" if certain else "unlikely"
    elif sent and met >= attainment * sent and not rising:
        outcome = "met" if low >= attainment else "likely"
    return Verdict(
        load=load,
        outcome=outcome,
        met=met,
        sent=sent,
        low=low,
        high=high,
        growing=growing,
        margin=_margin([record for part in records for record in part], attainment, promise),
        served=float(np.mean(served)) if served else None,
        faults=() if certain else tuple(views[-1].faults),
        points=len(views),
    )


def _flags(view: View, records: Sequence[RequestRecord], promise: Promise) -> list[bool]:
    """Return whether each request met the SLO, in the order of sending; of all, where the records are a sample."""
    if len(view.within) > len(records):
        return list(map(bool, view.within))
    return [kept(record, promise) for record in sorted(records, key=lambda record: record.intended)]


def bounds(flags: Sequence[bool]) -> tuple[float, float]:
    """Return Wilson's bounds of a share, given outcomes in their order.

    Neighbours are alike, so the number of outcomes is divided by how much more the shares of the
    parts vary than those of independent outcomes.
    """
    if not flags:
        return 0.0, 1.0
    count, share = float(len(flags)), sum(flags) / len(flags)
    parts = min(MAX_PARTS, len(flags) // MIN_IN_PART)
    if parts > 1 and 0 < share < 1:
        shares = [np.mean(part) for part in np.array_split(np.array(flags, dtype=np.float64), parts)]
        count /= max(1.0, float(np.var(shares, ddof=1)) * len(flags) / parts / (share * (1 - share)))
    return wilson(share, count, Z)


def _margin(records: Sequence[RequestRecord], attainment: float, promise: Promise) -> float | None:
    if promise == Promise() or not records:
        return None
    ratios = sorted(_ratio(record, promise) for record in records)
    return ratios[min(len(ratios) - 1, math.ceil(attainment * len(ratios)) - 1)]


def _ratio(record: RequestRecord, promise: Promise) -> float:
    if record.outcome != "ok" or record.first_token is None:
        return math.inf
    first = (record.first_token - record.intended) / promise.ttft if promise.ttft else 0.0
    return max(first, (tpot(record) or 0.0) / promise.tpot if promise.tpot else 0.0)


def verdicts_of(views: Sequence[View], goal: Goal, promise: Promise) -> list[Verdict]:
    """Return the verdict of each load of one target, in the order of their first measurement."""
    by_load: dict[float, list[View]] = {}
    for view in views:
        load = view.point.concurrency if goal.loop == "concurrency" else view.point.rate
        if load is not None:
            by_load.setdefault(float(load), []).append(view)
    return [judge(load, each, goal.attainment, promise) for load, each in by_load.items()]
