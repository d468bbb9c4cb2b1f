"""Whether the requests in flight of an open loop grow without end: its rate is above capacity. Pure.

The span after the first answers is cut into equal parts. At a rate above capacity the number in
flight grows by about as much in each part, so the growths of the parts have a mean clearly above
their error. At a rate below capacity they cancel each other, which makes the test cautious. In a
run that lasts for few answers, their ends are too irregular for it; there the time to first token
shows a queue, if it rises from each quarter of the requests to the next.

A request that timed out, or that the end of the run cut off, counts as in flight to the end: the
server did not answer it. A refused one counts as ended.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.analysis.steady_state import Floats, deliveries
from benchmarks.recording.results import STOPPED, RequestRecord

PARTS = 8
SERVED_PARTS = 12
# Patterns with one rate: the load of another one grows by itself.
STEADY_PATTERNS = ("constant", "poisson", "gamma")
# The first quarter of a run fills the server.
FILLING_SHARE = 0.25
# Requests in flight must grow by this share of what was sent, and by this many.
MIN_DEFICIT, MIN_GROWTH = 0.03, 4
# The mean growth in multiples of its error: certain (97 % one-sided with eight parts), and possible.
CERTAIN, POSSIBLE = 2.2, 1.0
# Above capacity, the wait in a queue grows by this much or more for each second of the run.
MIN_SLOPE = 0.1

Trend = Literal["steady", "undecided", "over-saturated"]


class Backlog(msgspec.Struct, kw_only=True):
    """How an open loop's requests in flight changed, and what the server produced.

    Attributes:
        trend: Whether the number in flight grew without end.
        before, after: Requests in flight at the begin and the end of the judged span.
        ttft_before, ttft_after: Median seconds to the first token of the first and the last quarter
            of the requests; None if most of them got no token.
        sent: Requests sent per second within the span.
        served: Requests per second that the tokens of twelve parts of the span's second half amount
            to; in the first half a batch may still fill.
    """

    trend: Trend
    before: int
    after: int
    ttft_before: float | None
    ttft_after: float | None
    sent: float
    served: list[float]


def backlog(records: Sequence[RequestRecord], rate: float = math.inf) -> Backlog | None:
    """Judge one point of an open loop with one rate; None if it is too short to be judged.

    A server that answers more than the `rate` is not above its capacity: by chance, more requests
    came at once than later will.
    """
    ordered = sorted(records, key=lambda record: record.intended)
    if len(ordered) < 2 * PARTS:
        return None
    end = ordered[-1].intended
    edges = np.linspace(_filled(ordered, end), end, PARTS + 1)
    begun = np.searchsorted([record.intended for record in ordered], edges, side="right")
    levels = begun - np.searchsorted(np.sort([_ended(record) for record in ordered]), edges, side="right")
    sent = int(begun[-1] - begun[0])
    waits = [_wait(list(part)) for part in np.array_split(np.asarray(ordered, dtype=object), 4)]
    grown = levels[-1] > levels[0] and _waits_grow(waits, end - ordered[0].intended)
    served = _served(ordered, np.linspace(edges[PARTS // 2], end, SERVED_PARTS + 1))
    found = "over-saturated" if grown else trend(levels, sent)
    return Backlog(
        trend="undecided" if found == "over-saturated" and served.mean() > rate else found,
        before=int(levels[0]),
        after=int(levels[-1]),
        ttft_before=_ttft(ordered[: len(ordered) // 4]),
        ttft_after=_ttft(ordered[-(len(ordered) // 4) :]),
        sent=sent / float(edges[-1] - edges[0]),
        served=served.tolist(),
    )


def trend(levels: npt.ArrayLike, sent: int, certain: float = CERTAIN) -> Trend:
    """Judge the numbers in flight at equally spaced times, during which `sent` requests were sent."""
    steps = np.diff(np.asarray(levels, dtype=np.float64))
    growth, error = float(steps.sum()), float(steps.std(ddof=1)) * np.sqrt(len(steps))
    if growth < MIN_GROWTH or growth < MIN_DEFICIT * sent or growth <= POSSIBLE * error:
        return "steady"
    return "over-saturated" if growth > certain * error else "undecided"


def _filled(ordered: Sequence[RequestRecord], end: float) -> float:
    """Return when the server was full: a quarter of the run, or longer if the first answers were."""
    first = ordered[: max(4, len(ordered) // 20)]
    answer = float(np.median([min(_ended(record), end) - record.intended for record in first]))
    begin = ordered[0].intended
    return begin + max(min(answer, (end - begin) / 2), (end - begin) * FILLING_SHARE)


def _ended(record: RequestRecord) -> float:
    if record.finished is None or record.outcome == "timeout" or record.detail == STOPPED:
        return float("inf")
    return record.finished


def _wait(records: Sequence[RequestRecord]) -> float:
    """Return the median seconds to the first token, or to the end of a request that got none."""
    ends = [record.first_token or record.finished or record.intended for record in records]
    return float(np.median([end - record.intended for end, record in zip(ends, records, strict=True)]))


def _ttft(records: Sequence[RequestRecord]) -> float | None:
    found = [record.first_token - record.intended for record in records if record.first_token is not None]
    return float(np.median(found)) if 2 * len(found) > len(records) else None


def _waits_grow(waits: Sequence[float], seconds: float) -> bool:
    """Whether the wait of four equal parts of the requests rises from each part to the next, and fast."""
    return all(after > before for before, after in itertools.pairwise(waits)) and waits[-1] - waits[0] > MIN_SLOPE * 0.75 * seconds


def _served(records: Sequence[RequestRecord], edges: Floats) -> Floats:
    """Return the tokens per second of each part, in requests of the mean answer's length."""
    answers = [record.wanted_tokens for record in records]
    times, tokens = deliveries(records)
    counts, _ = np.histogram(times, bins=edges, weights=tokens)
    return np.asarray(counts / np.diff(edges) / np.mean(answers), dtype=np.float64)
