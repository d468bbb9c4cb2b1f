"""Counts and distributions over requests. Knows no exporter, no engine and no clock.

Events arrive through `Observer`. `MetricsRecorder` is the observer that every manager has;
exporters in `llmserve.observability` read its `snapshot()`.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, Self

from llmserve.config import SLO
from llmserve.request import Outcome, Timeline

logger = logging.getLogger(__name__)

# The label for all tenants that the operator's table does not name.
OTHERS = "others"


class Observer(Protocol):
    """Receives events as they happen, in the event loop, so its methods must be quick."""

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        """Note `count` new tokens of a request at `now`. `timeline` does not include them yet."""

    def finished(self, timeline: Timeline) -> None:
        """Note the end of a request; its timeline will not change any more."""


class Observers:
    """Combines several observers, and logs what they raise.

    An exception would otherwise end up in the engine's own output loop, and vLLM's loop dies of it.
    """

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
    """Counts values in seconds in buckets that grow by 2 %.

    Any percentile is within 1 %, with a fixed memory of 16 kB. The range is 10 microseconds to 3
    hours; values outside count at the edge. New values are kept and counted a thousand at a time,
    or when the histogram is read, which takes a third of the time.
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
        """Number of values in each bucket."""
        self._settle()
        return self._counts

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def total(self) -> float:
        """Sum of the values, with their weights."""
        self._settle()
        return self._total

    @property
    def maximum(self) -> float:
        """The largest value, or 0.0 without data."""
        self._settle()
        return self._maximum

    def absorb(self, other: "LogHistogram") -> None:
        """Add the counts of another histogram."""
        self._counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self._total += other.total
        self._maximum = max(self._maximum, other.maximum)

    def percentile(self, share: float) -> float | None:
        """Return the value below which a `share` (0 to 1) of all values lie; None without data."""
        every = self.count
        if not every:
            return None
        rank = share * every
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                # The middle of the bucket on the log scale, but not above the largest value.
                return min(self.LOW * float(self.GROWTH ** (index + 0.5)), self.maximum)
        return self.maximum

    def count_below(self, bound: float) -> int:
        """Return the number of values up to `bound`, to within a bucket's 2 %."""
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
    """Events per second over the last whole seconds. The memory is proportional to the window."""

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
        """Add the counts of another rate on the same clock."""
        for second, count in other.seconds.items():
            self.seconds[second] = self.seconds.get(second, 0) + count

    def shift(self, seconds: float) -> None:
        """Convert to a clock that is `seconds` ahead."""
        self.seconds = {key + round(seconds): value for key, value in self.seconds.items()}

    def per_second(self, now: float, since: float) -> float:
        """Return the rate over the window before `now`, or since `since` if that is later."""
        start = max(now - self.window, since)
        counted = sum(value for key, value in self.seconds.items() if key >= int(start))
        # Divide by at least a second, or a single event just after the start would give a rate of
        # thousands.
        return counted / max(now - start, 1.0)


class MetricsRecorder:
    """Records outcomes, latencies, token rates and goodput.

    TTFT is the time from arrival to the first delivered token. ITL is the gap between deliveries
    divided by the tokens delivered, weighted by tokens. TPOT is (last - first token) / (tokens -
    1). E2E is arrival to end, and queue time is arrival to admission. Latencies cover completed
    requests, but TTFT and ITL cover every delivered token. Goodput is the number of completed
    requests that met every target of the SLO, relative to all that arrived.
    """

    def __init__(self, slo: SLO, started: float, max_seconds: float | None = None) -> None:
        self.slo = slo
        # The longest time that a request may take; the buckets of exported latencies end there.
        self.max_seconds = max_seconds
        self.started = started
        self.outcomes: Counter[Outcome] = Counter()
        self.reasons: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        # Tenants that the operator names are counted separately, and all others together, because
        # clients may choose any name.
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
        # The end of the second that new tokens count for, and the number of tokens that the rate
        # already has.
        self._second_ends = 0.0
        self._rated = 0
        self._request_rate = RecentRate()
        self._good_rate = RecentRate()

    @classmethod
    def together(cls, parts: "Sequence[MetricsRecorder]") -> Self:
        """Merge recorders that have the same clock and SLO. `parts` must not be empty."""
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
        """Convert to the clock of another machine, which is `seconds` ahead."""
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
        """Add the tokens since the last call to the rate: once a second and when it is read."""
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
        """Return all figures as plain values; latencies in seconds, None without data."""
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
    """Return the seconds per token after the first; None for fewer than two tokens."""
    if timeline.first_token is None or timeline.last_token is None or timeline.completion_tokens < 2:
        return None
    return (timeline.last_token - timeline.first_token) / (timeline.completion_tokens - 1)


def meets(slo: SLO, timeline: Timeline) -> bool:
    """Whether a completed request met the targets of the SLO."""
    if slo.ttft is not None and (timeline.first_token is None or timeline.first_token - timeline.arrived > slo.ttft):
        return False
    tpot = time_per_output_token(timeline)
    return slo.tpot is None or tpot is None or tpot <= slo.tpot
