"""Which part of a point counts for its throughput, and how steady it was. Pure."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.recording.results import RequestRecord

Floats = npt.NDArray[np.float64]
Window = tuple[float, float]

# A span counts as steady while at least this share of the peak is in flight.
STEADY_SHARE = 0.9
# A longer drop than this share of the whole is a dip of the load, not a moment between two
# requests.
DIP_SHARE = 0.01
MAX_BLOCKS = 16
# Recorded times are rounded to the microsecond. Without this, a client would sometimes have a
# request while it still has the one before, and that moment would be the peak.
ROUNDED = 2e-6


def steady_window(records: Sequence[RequestRecord]) -> Window:
    """Return the longest span with at least 90 % of the peak in flight, without ramp and drain.

    A dip shorter than 1 % of the whole does not end a span, because between two requests a client
    briefly has none. A client that thinks counts as one that has a request. The span begins when
    all clients have their first token: before that they share one burst of prompts, which does not
    recur.
    """
    net: Counter[float] = Counter()
    for record in records:
        if record.dispatched is not None and record.finished is not None:
            net[record.intended - record.think + ROUNDED if record.think else record.dispatched] += 1
            net[record.finished] -= 1
    times = sorted(net)
    levels = list(itertools.accumulate(net[time] for time in times))
    if not times:
        return (0.0, 0.0)
    dip = DIP_SHARE * (times[-1] - times[0])
    peak = max(levels)
    spans: list[Window] = []
    for begin, end, level in zip(times, times[1:], levels, strict=False):
        if level < STEADY_SHARE * peak:
            continue
        if spans and begin - spans[-1][1] <= dip:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    begun = max((record.first_token for record in records if record.lead and record.first_token is not None), default=times[0])
    spans = [(max(start, begun), end) for start, end in spans if end > begun]
    return max(spans, key=lambda span: span[1] - span[0], default=(0.0, 0.0))


def sending_window(records: Sequence[RequestRecord]) -> Window:
    """Return the time from the first to the last intended send, the window of an open loop.

    An open loop has no peak to hold, so its throughput covers all of its load.
    """
    intended = [record.intended for record in records]
    return (min(intended, default=0.0), max(intended, default=0.0))


def deliveries(records: Sequence[RequestRecord]) -> tuple[Floats, Floats]:
    """Return the times of all deliveries, and their numbers of tokens."""
    pairs = [pair for record in records for pair in record.deliveries]
    both = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def block_rates(records: Sequence[RequestRecord], window: Window) -> Floats:
    """Return tokens per second in equal parts of the window; empty for an empty window.

    A part covers about two rounds of the clients. The variation between parts is that between
    repetitions.
    """
    start, end = window
    if end <= start:
        return np.empty(0)
    inside = sum(1 for record in records if record.finished is not None and start < record.finished <= end)
    clients = max(1.0, in_flight(records, window))
    count = int(np.clip(inside / clients / 2, 2, MAX_BLOCKS))
    times, tokens = deliveries(records)
    counts, edges = np.histogram(times, bins=count, range=window, weights=tokens)
    return np.asarray(counts / np.diff(edges), dtype=np.float64)


def in_flight(records: Sequence[RequestRecord], window: Window) -> float:
    """Mean number of requests between send and end within the window."""
    start, end = window
    spent = sum(
        max(0.0, min(end, record.finished) - max(start, record.dispatched))
        for record in records
        if record.dispatched is not None and record.finished is not None
    )
    return spent / (end - start) if end > start else 0.0
