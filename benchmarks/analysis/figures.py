"""What an analysis derives from the requests themselves, and can keep beside a sample of them. Pure."""

import math
from collections.abc import Sequence

import msgspec

from benchmarks.analysis.backlog import STEADY_PATTERNS, Backlog, backlog
from benchmarks.analysis.capacity import Capacity
from benchmarks.analysis.stages import Waterfall, waterfall
from benchmarks.analysis.steady_state import block_rates
from benchmarks.analysis.summary import Summary, kept, summarize, times_of
from benchmarks.analysis.validity import faults
from benchmarks.recording.results import Point, Promise, RequestRecord, Run
from benchmarks.recording.storage import UnreadableRun


class Figures(msgspec.Struct, kw_only=True):
    """The figures of all requests of one point.

    Attributes:
        sent: Number of requests, leads included.
        offered: Requests sent per second within the window.
        blocks: Tokens per second in equal parts of the window.
        times: The requests' latencies in nanoseconds, by the name of their distribution.
        faults: Reasons why the point is not valid.
        backlog: How the requests in flight changed in an open loop with one rate.
        within: 1 for each request that met the SLO and 0 for any other; empty without an SLO.
    """

    sent: int
    offered: float
    summary: Summary
    blocks: list[float]
    waterfall: Waterfall | None
    times: dict[str, list[int]]
    faults: list[str]
    backlog: Backlog | None = None
    within: list[int] = []


class WholeSummary(msgspec.Struct):
    """The figures of all requests of a run, by point, and its step-time models, by target."""

    points: dict[int, Figures]
    capacity: dict[str, Capacity]


def figures(run: Run, point: Point, records: Sequence[RequestRecord]) -> Figures:
    """Derive the figures of one point from all of its requests."""
    summary = summarize(records, open_loop=point.concurrency is None, promise=run.promise)
    counted = [record for record in records if not record.lead]
    stages = waterfall(counted)
    waiting = backlog(counted, point.rate or math.inf) if point.pattern in STEADY_PATTERNS else None
    start, end = summary.window
    sent = sum(1 for record in records if start < record.intended <= end)
    return Figures(
        sent=len(records),
        offered=sent / (end - start) if end > start else 0.0,
        summary=summary,
        blocks=block_rates(records, summary.window).tolist(),
        waterfall=stages,
        times={name: [round(value * 1e9) for value in values] for name, values in times_of(counted).items()},
        faults=faults(point, records, summary, stages, run.ceiling.get(point.target)),
        backlog=waiting,
        within=[int(kept(record, run.promise)) for record in counted] if run.promise != Promise() else [],
    )


def pack(whole: WholeSummary) -> bytes:
    """Encode a summary; MessagePack, because JSON has no infinity."""
    return msgspec.msgpack.encode(whole)


def unpack(packed: bytes) -> WholeSummary:
    """Decode a summary. Raises UnreadableRun."""
    try:
        return msgspec.msgpack.decode(packed, type=WholeSummary)
    except msgspec.MsgspecError as error:
        raise UnreadableRun(f"the summary beside the run's requests: {error}") from error
