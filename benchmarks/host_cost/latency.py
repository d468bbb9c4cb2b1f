"""Measures the latency that each path adds to a token: `python -m benchmarks latency`.

The paths are in process, HTTP and raw sockets (TCP and unix), all to one manager, measured together
or one after another. The engine only keeps a pace, so a token's added latency is that of its path:
the time at which a client has the token, minus the time at which the engine gave it to the manager.
All processes of a host share the clock. The k-th request of one path is paired with the k-th of
another, which ran beside it. Intervals are from a bootstrap over pairs.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
import numpy as np

from benchmarks.generator.processes import Fleet, open_fleet
from benchmarks.generator.run import Generator, Measured
from benchmarks.recording.results import RequestRecord
from benchmarks.stand_ins.null_engine import NoEngine
from benchmarks.targets import TargetError
from benchmarks.targets.inprocess import InProcess
from benchmarks.targets.local_server import serve_here, serve_sockets_here
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig, Timeline

INPROCESS = "inprocess"
WAYS = (INPROCESS, "http", "tcp", "unix")
PAUSE, TEXT = 0.01, " word"
# Long answers, because otherwise a percentile of tokens shows beginnings and ends, which come
# together in a closed loop.
PROMPT_TOKENS, ANSWER_TOKENS = 16, 400
RESAMPLES, SEED = 200, 1


class Way(msgspec.Struct, kw_only=True):
    """One path's requests in order, in seconds.

    Attributes:
        ttft: Time to the first token.
        itl: Mean gap between tokens.
        e2e: Time to the end.
        added: Added latency of each token.
    """

    ttft: list[float] = []
    itl: list[float] = []
    e2e: list[float] = []
    added: list[list[float]] = []


class Emitted:
    """An observer that records when each token was given to the manager."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        self.times.setdefault(timeline.request_id, []).extend([now] * count)

    def finished(self, timeline: Timeline) -> None:
        """Do nothing: the times are read when the clients have ended too."""


async def measure(streams: int, requests: int, rounds: int, report: Callable[[str], None], *, alone: bool = False) -> dict[str, Way]:
    """Run rounds of `requests` requests per path with `streams` concurrent ones.

    All paths run together, or one after another if `alone`. Raises TargetError when a request
    fails.
    """
    emitted = Emitted()
    found = {way: Way() for way in WAYS}
    config = ManagerConfig(admission=AdmissionConfig(max_running=0))
    async with EngineManager(NoEngine(TEXT, PAUSE), config, [emitted]) as manager, _ways(manager) as fleets:
        for number in range(rounds + 1):
            report(f"round {number} of {rounds}" if number else "warm-up")
            order = WAYS if number % 2 else WAYS[::-1]
            for group in [[way] for way in order] if alone else [list(order)]:
                measured = {way: Measured() for way in group}
                await asyncio.gather(
                    *(_run(manager, fleets.get(way), _job(way, number, streams, requests), measured[way]) for way in group)
                )
                for way in group if number else []:
                    _take(found[way], measured[way], emitted)
    return found


async def _run(manager: EngineManager, fleet: Fleet | None, job: PointPlan, measured: Measured) -> None:
    if fleet is None:
        await Generator(InProcess(manager), job, measured=measured, clock=time.monotonic).run()
    else:
        await fleet.run(job, measured, lambda _: None)


@asynccontextmanager
async def _ways(manager: EngineManager) -> AsyncIterator[dict[str, Fleet]]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmserve-latency-"))
        http = await stack.enter_async_context(serve_here(manager, "nothing"))
        tcp, unix = await stack.enter_async_context(
            serve_sockets_here(manager, "nothing", ["tcp://127.0.0.1:0", f"unix://{folder}/socket"])
        )
        urls = {"http": http, "tcp": tcp, "unix": unix}
        yield {way: await stack.enter_async_context(open_fleet(url, "nothing", 1)) for way, url in urls.items()}


def _job(way: str, number: int, streams: int, requests: int) -> PointPlan:
    workload = Workload(prompt=Fixed(PROMPT_TOKENS), output=Fixed(ANSWER_TOKENS), vocabulary=(1, 1000), seed=SEED)
    return PointPlan(point=0, label=f"{way} {number}", load=Load(concurrency=streams), workload=workload, requests=requests)


def _take(way: Way, measured: Measured, emitted: Emitted) -> None:
    for record in measured.records:
        if record.outcome != "ok":
            raise TargetError(f"a request failed: {record.outcome}, {record.detail}")
        sent, first, last = record.dispatched or 0.0, record.first_token or 0.0, record.last_token or 0.0
        way.ttft.append(first - sent)
        way.itl.append((last - first) / (record.completion_tokens - 1))
        way.e2e.append((record.finished or 0.0) - sent)
        way.added.append(_added(record, emitted.times[record.request_id.removeprefix("cmpl-")], measured.origin))


def _added(record: RequestRecord, given: Sequence[float], origin: float) -> list[float]:
    had = [at + origin for at, count in record.deliveries for _ in range(count)]
    return [late - early for late, early in zip(had, given, strict=True)]


def conclude(found: dict[str, Way]) -> str:
    """Return Markdown: what each path adds to a token, differences in process, ratios to HTTP."""
    lines = [
        "| path | added per token, p50, us | p99, us | added to TTFT, ms | to a gap, us | to end to end, ms |",
        "|---|---|---|---|---|---|",
    ]
    base = found[INPROCESS]
    for name, way in found.items():
        cells = [_interval(way.added, partial(_quantile, share=share, scale=1e6)) for share in (0.5, 0.99)]
        for mine, other, scale in ((way.ttft, base.ttft, 1e3), (way.itl, base.itl, 1e6), (way.e2e, base.e2e, 1e3)):
            pairs = [[(one - two) * scale] for one, two in zip(mine, other, strict=True)]
            cells.append("" if way is base else _interval(pairs, _mean))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for name in ("tcp", "unix"):
        both = [[one, two] for one, two in zip(found[name].added, found["http"].added, strict=True)]
        lines.append(f"- {name}: {_ratio(both)} times what HTTP adds to a token at p99")
    return "\n".join(lines)


def _mean(sample: np.ndarray) -> float:
    return float(np.mean(sample))


def _quantile(sample: np.ndarray, share: float, scale: float) -> float:
    return float(np.quantile(sample, share)) * scale


def _interval(groups: Sequence[Sequence[float]], figure: Callable[[np.ndarray], float]) -> str:
    """Return the figure over all groups, with the 95 % interval of resampled groups."""
    arrays = [np.asarray(group) for group in groups]
    rng = np.random.default_rng(SEED)
    drawn = [float(figure(np.concatenate([arrays[index] for index in _draw(rng, len(arrays))]))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{float(figure(np.concatenate(arrays))):,.2f} ({low:,.2f} to {high:,.2f})"


def _ratio(pairs: Sequence[Sequence[Sequence[float]]]) -> str:
    def figure(indices: Sequence[int]) -> float:
        one, two = (np.quantile(np.concatenate([np.asarray(pairs[index][side]) for index in indices]), 0.99) for side in (0, 1))
        return float(one / two)

    rng = np.random.default_rng(SEED)
    low, high = np.quantile([figure(_draw(rng, len(pairs))) for _ in range(RESAMPLES)], [0.025, 0.975])
    return f"{figure(range(len(pairs))):.2f} ({low:.2f} to {high:.2f})"


def _draw(rng: np.random.Generator, count: int) -> list[int]:
    return [int(index) for index in rng.integers(0, count, count)]
