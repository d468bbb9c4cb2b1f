"""Counts and distributions, derived from what happened to each request. Knows no exporter, no engine and no clock.

Facts come in through `Observer`; `MetricsRecorder` is the observer that every manager has. Exporters (`llmserve.observability`)
read its `snapshot()`.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, Self

from llmserve.config import SLO
from llmserve.request import Outcome, Timeline

logger = logging.getLogger(__name__)

# All tenants that no table of the operator's names.
OTHERS = "others"


class Observer(Protocol):
    """Told the facts as they happen, in the event loop: must be quick."""

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        """`count` new tokens of a request at `now`. `timeline` still shows the state before them."""

    def finished(self, timeline: Timeline) -> None:
        """A request has ended, and nothing about it will change any more."""


class Observers:
    """Several observers as one. What one of them raises is logged and goes no further: it would end in the engine's own
    output loop, and vLLM's dies of it."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        for observer in self._observers:
            try:
                observer.tokens(timeline, count, now)
            except Exception:
                logger.exception("the observer %r failed", observer)

    def finished(self, timeline: Timeline) -> None:
        for observer in self._observers:
            try:
                observer.finished(timeline)
            except Exception:
                logger.exception("the observer %r failed", observer)


class LogHistogram:
    """Counts in buckets that grow by 2 % each, so that any percentile is within 1 % at a fixed memory of 16 kB.

    Covers 10 microseconds to 3 hours; what lies outside is counted at the edge. Values in seconds.

    A value is kept first, and counted together with a thousand others or when the histogram is read: that takes a third of the time.
    """

    LOW = 1e-5
    GROWTH = 1.02
    BUCKETS = 1050  # LOW * GROWTH**1050 is 10,700 s
    MAX_KEPT = 1024  # counted in 0.2 ms

    _SCALE = 1 / math.log(GROWTH)

    def __init__(self) -> None:
        self._counts = [0] * self.BUCKETS
        self._total = 0.0
        self._maximum = 0.0
        self._kept: list[float] = []

    def add(self, value: float, weight: int = 1) -> None:
        if weight != 1:
            self._count([value], weight)
            return
        self._kept.append(value)
        if len(self._kept) >= self.MAX_KEPT:
            self._settle()

    def _settle(self) -> None:
        kept, self._kept = self._kept, []
        if kept:
            self._count(kept, 1)

    def _count(self, values: list[float], weight: int) -> None:
        counts, low, scale, last, log = self._counts, self.LOW, self._SCALE, self.BUCKETS - 1, math.log
        for value in values:
            index = int(log(value / low) * scale) if value > low else 0
            counts[min(index, last)] += weight
        self._total += sum(values) * weight
        self._maximum = max(self._maximum, *values)

    @property
    def counts(self) -> list[int]:
        """By bucket."""
        self._settle()
        return self._counts

    @property
    def count(self) -> int:
        """Of all values."""
        return sum(self.counts)

    @property
    def total(self) -> float:
        """Of all values, each as often as it weighs."""
        self._settle()
        return self._total

    @property
    def maximum(self) -> float:
        """Of all values; 0.0 without one."""
        self._settle()
        return self._maximum

    def absorb(self, other: "LogHistogram") -> None:
        """Add all that another one has counted."""
        self._counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self._total += other.total
        self._maximum = max(self._maximum, other.maximum)

    def percentile(self, share: float) -> float | None:
        """The value that a `share` (0 to 1) of all lie below; None without data."""
        every = self.count
        if not every:
            return None
        rank = share * every
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                # The middle of the bucket on the log scale; never above what was really seen.
                return min(self.LOW * float(self.GROWTH ** (index + 0.5)), self.maximum)
        return self.maximum

    def count_below(self, bound: float) -> int:
        """How many were at most `bound`, to within a bucket's 2 %."""
        if bound < self.LOW:
            return 0
        index = int(math.log(bound / self.LOW) * self._SCALE)
        return sum(self.counts[: index + 1])

    def snapshot(self) -> dict[str, float | int | None]:
        count = self.count
        return {
            "count": count,
            "mean": self.total / count if count else None,
            "p50": self.percentile(0.50),
            "p95": self.percentile(0.95),
            "p99": self.percentile(0.99),
            "max": self.maximum if count else None,
        }


class RecentRate:
    """Events per second over the last whole seconds; memory is the window's."""

    def __init__(self, window: int = 10) -> None:
        self.window = window
        self.seconds: dict[int, int] = {}

    def add(self, count: int, now: float) -> None:
        second = int(now)
        if second in self.seconds:
            self.seconds[second] += count
        else:
            self.seconds[second] = count
            self.seconds = {key: value for key, value in self.seconds.items() if key >= second - self.window}

    def absorb(self, other: "RecentRate") -> None:
        """Add what another one has counted on the same clock."""
        for second, count in other.seconds.items():
            self.seconds[second] = self.seconds.get(second, 0) + count

    def shift(self, seconds: float) -> None:
        """Onto a clock that is so much ahead."""
        self.seconds = {key + round(seconds): value for key, value in self.seconds.items()}

    def per_second(self, now: float, since: float) -> float:
        """The rate over the window before `now`, or from `since` where that is later."""
        start = max(now - self.window, since)
        counted = sum(value for key, value in self.seconds.items() if key >= int(start))
        # At least a second: a single event a moment after the start is not a rate of thousands.
        return counted / max(now - start, 1.0)


class MetricsRecorder:
    """Keeps counts by outcome, latencies, token rates and goodput.

    Definitions: TTFT is arrival to first delivered token; ITL the gap between deliveries divided by the tokens delivered,
    weighted by tokens; TPOT is (last - first token) / (tokens - 1); E2E is arrival to end; queue time is arrival to
    admission. Latencies count completed requests, but TTFT and ITL count every token delivered. Goodput counts completed
    requests that met every bound of the SLO, out of all that arrived.
    """

    def __init__(self, slo: SLO, started: float, max_seconds: float | None = None) -> None:
        self.slo = slo
        # The longest that a request may take: latencies are exported up to it.
        self.max_seconds = max_seconds
        self.started = started
        self.outcomes: Counter[Outcome] = Counter()
        self.reasons: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        # Tenants that the operator has named are counted each by itself, all others together: clients may call themselves anything.
        self.named: frozenset[str] = frozenset()
        self.tenants: Counter[tuple[str, Outcome]] = Counter()
        self.tenant_tokens: Counter[tuple[str, str]] = Counter()
        self.met_slo = 0
        self.ttft = LogHistogram()
        self.itl = LogHistogram()
        self.tpot = LogHistogram()
        self.e2e = LogHistogram()
        self.queue = LogHistogram()
        self._token_rate = RecentRate()
        # Until then tokens are of the second that the rate is at; and so many of them it has.
        self._second_ends = 0.0
        self._rated = 0
        self._request_rate = RecentRate()
        self._good_rate = RecentRate()

    @classmethod
    def together(cls, parts: "Sequence[MetricsRecorder]") -> Self:
        """One that has recorded all that those on the same clock, with the same SLO, have. `parts` must not be empty."""
        whole = cls(parts[0].slo, min(part.started for part in parts), parts[0].max_seconds)
        for part in parts:
            part.rate_tokens()
            for name, value in vars(part).items():
                mine = getattr(whole, name)
                if isinstance(mine, (LogHistogram, RecentRate)):
                    mine.absorb(value)
                elif isinstance(mine, Counter):
                    mine.update(value)
                elif isinstance(mine, int):
                    setattr(whole, name, mine + value)
        return whole

    def shift(self, seconds: float) -> None:
        """Onto a clock that is so much ahead: another machine's."""
        self.rate_tokens()
        self.started += seconds
        self._second_ends += seconds
        for rate in (self._token_rate, self._request_rate, self._good_rate):
            rate.shift(seconds)

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        if now >= self._second_ends:
            self.rate_tokens()
            self._second_ends = int(now) + 1.0
        self.completion_tokens += count
        if timeline.last_token is None:
            self.ttft.add(now - timeline.arrived)
        elif count:
            self.itl.add((now - timeline.last_token) / count, count)

    def rate_tokens(self) -> None:
        """Give the rate the tokens of its second that it does not have: once a second and when it is read, not for each token."""
        if self.completion_tokens > self._rated:
            self._token_rate.add(self.completion_tokens - self._rated, self._second_ends - 1)
            self._rated = self.completion_tokens

    def finished(self, timeline: Timeline) -> None:
        outcome = timeline.outcome or Outcome.FAILED
        self.outcomes[outcome] += 1
        if timeline.reason:
            self.reasons[timeline.reason] += 1
        self.prompt_tokens += timeline.prompt_tokens
        self.cached_tokens += timeline.cached_tokens
        tenant = timeline.tenant if timeline.tenant in self.named else OTHERS
        self.tenants[tenant, outcome] += 1
        self.tenant_tokens[tenant, "prompt"] += timeline.prompt_tokens
        self.tenant_tokens[tenant, "completion"] += timeline.completion_tokens
        if timeline.admitted is not None:
            self.queue.add(timeline.admitted - timeline.arrived)
        if outcome is not Outcome.COMPLETED or timeline.finished is None:
            return
        self._request_rate.add(1, timeline.finished)
        self.e2e.add(timeline.finished - timeline.arrived)
        tpot = time_per_output_token(timeline)
        if tpot is not None:
            self.tpot.add(tpot)
        if meets(self.slo, timeline):
            self.met_slo += 1
            self._good_rate.add(1, timeline.finished)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything as plain numbers; latencies in seconds, None where nothing was measured."""
        self.rate_tokens()
        total = sum(self.outcomes.values())
        return {
            "uptime": now - self.started,
            "requests": {
                "total": total,
                **{outcome.value: self.outcomes[outcome] for outcome in Outcome},
                "per_second": self._request_rate.per_second(now, self.started),
            },
            "reasons": dict(self.reasons),
            "tenants": self._by_tenant(),
            "tokens": {
                "prompt": self.prompt_tokens,
                "completion": self.completion_tokens,
                "cached": self.cached_tokens,
                "per_second": self._token_rate.per_second(now, self.started),
            },
            "ttft": self.ttft.snapshot(),
            "itl": self.itl.snapshot(),
            "tpot": self.tpot.snapshot(),
            "e2e": self.e2e.snapshot(),
            "queue": self.queue.snapshot(),
            "goodput": {
                "slo": {"ttft": self.slo.ttft, "tpot": self.slo.tpot},
                "met": self.met_slo,
                "share": self.met_slo / total if total else None,
                "per_second": self._good_rate.per_second(now, self.started),
            },
        }

    def _by_tenant(self) -> dict[str, dict[str, dict[str, int]]]:
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (tenant, outcome), count in self.tenants.items():
            found.setdefault(tenant, {"requests": {}, "tokens": {}})["requests"][outcome.value] = count
        for (tenant, kind), count in self.tenant_tokens.items():
            found[tenant]["tokens"][kind] = count
        return found


def time_per_output_token(timeline: Timeline) -> float | None:
    """Seconds a token after the first; None where there was no second one."""
    if timeline.first_token is None or timeline.last_token is None or timeline.completion_tokens < 2:
        return None
    return (timeline.last_token - timeline.first_token) / (timeline.completion_tokens - 1)


def meets(slo: SLO, timeline: Timeline) -> bool:
    """Whether a completed request kept what the SLO promises."""
    if slo.ttft is not None and (timeline.first_token is None or timeline.first_token - timeline.arrived > slo.ttft):
        return False
    tpot = time_per_output_token(timeline)
    return slo.tpot is None or tpot is None or tpot <= slo.tpot
