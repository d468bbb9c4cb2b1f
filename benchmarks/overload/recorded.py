"""The requests of recorded traces, for simulations: windows of a trace at any mean rate."""

import bisect
import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks.overload.engine import BLOCK
from benchmarks.overload.scenarios import THIRDS, Scenario
from benchmarks.overload.traffic import Request
from benchmarks.workload.traces import MOONCAKE_BLOCK, Arrival, read_trace
from llmserve.config import SLO

# Seconds before and after those that are judged, at least, and in TTFT objectives.
MARGIN, MARGIN_TTFTS = 20.0, 2.0


def trace_scenario(path: Path, slo: SLO, seconds: float) -> Scenario:
    """Return the workload of a trace file, judged for some seconds. Raises UnreadableFile."""
    _whole(path)
    margin = max(MARGIN, MARGIN_TTFTS * (slo.ttft or 0.0))
    return Scenario(name=path.stem, trace=path, slo=slo, seconds=seconds + 2 * margin, warm_up=margin, cool_down=margin)


def window(path: Path, rate: float, seconds: float, seed: int, *, arrivals: Iterator[float] | None = None) -> list[Request]:
    """Return the requests of a trace that fall into the window with the number `seed`.

    The trace as a whole has the mean `rate` per second; a window may have more or less. Each window
    follows the one before, and the trace starts again after its end. With `arrivals`, the requests
    from the window's start on come at these times instead.
    """
    whole = _whole(path)
    # A mean gap is between the end and the next start.
    span = whole[-1].due * len(whole) / max(1, len(whole) - 1) or 1.0
    factor = len(whole) / span / rate
    start = (seed - 1) * seconds
    turn, place = divmod(start / factor, span)
    first = bisect.bisect_left(whole, place, key=lambda request: request.due)
    endless = ((turn + number // len(whole), whole[number % len(whole)]) for number in itertools.count(first))
    if arrivals is not None:
        return [attrs.evolve(one, number=number, due=due) for number, (due, (_, one)) in enumerate(zip(arrivals, endless, strict=False))]
    timed = (((turns * span + one.due) * factor - start, one) for turns, one in endless)
    sent = enumerate(itertools.takewhile(lambda entry: entry[0] < seconds, timed))
    return [attrs.evolve(one, number=number, due=due) for number, (due, one) in sent]


@functools.lru_cache(maxsize=8)
def _whole(path: Path) -> list[Request]:
    trace = read_trace(path)
    ordered = sorted(arrival.prompt for arrival in trace)
    limits = [ordered[len(ordered) * third // len(THIRDS)] for third in range(1, len(THIRDS))]
    found = recorded(trace, 1)
    for request in found:
        request.kind = sum(request.prompt >= limit for limit in limits)
    return found


def recorded(trace: Sequence[Arrival], seed: int) -> list[Request]:
    """Return the requests of a trace in the order of their times; their numbers are its places.

    Requests with the same time are spread up to the next time, because Mooncake's conversations
    have times of whole three seconds.
    """
    rng = random.Random(f"trace {seed}")
    counts = Counter(arrival.time for arrival in trace)
    gaps = {before: after - before for before, after in itertools.pairwise(sorted(counts)) if counts[before] > 1}
    found = []
    for number, arrival in enumerate(trace):
        sizes = zip(arrival.blocks, block_sizes(arrival), strict=True)
        blocks = tuple((key, size // BLOCK * BLOCK) for key, size in sizes if size >= BLOCK)
        due = arrival.time + rng.random() * gaps.get(arrival.time, 0.0)
        found.append(Request(number, due, 0, arrival.prompt, arrival.output, blocks=blocks))
    return sorted(found, key=lambda request: request.due)


def block_sizes(arrival: Arrival) -> list[int]:
    """Return the tokens in each of the prompt's blocks."""
    return [min(MOONCAKE_BLOCK, arrival.prompt - MOONCAKE_BLOCK * place) for place in range(len(arrival.blocks))]
