"""The study: every contender on every workload, at several loads and seeds, in virtual time."""

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from benchmarks.overload.engine import StepEngine
from benchmarks.overload.judge import Verdict, judge, kept, together
from benchmarks.overload.recorded import window
from benchmarks.overload.scenarios import Scenario
from benchmarks.overload.traffic import Request, arrivals, requests
from benchmarks.overload.world import Retry, World
from benchmarks.stand_ins.admission_policies import make
from benchmarks.stand_ins.contender import Known, Setup
from benchmarks.stand_ins.contenders import fixed, thin, vllm
from llmserve.admission import AdmissionController, Unlimited

LATEGATE, NONE, GRADIENT2 = "lategate", "none", "gradient2"
# Limits of which the best is found in hindsight, each with three bounds on the wait, as shares of
# the TTFT objective.
LIMITS = fixed.LIMITS
WAITS = (0.15, 0.33, 0.6)
# The capacity is the rate at which this share of requests meets the SLO without any control.
# DistServe uses 90 %, which leaves more requests late. For a trace this is right: a few of its
# prompts are so long that they make others late at any rate.
CAPACITY_SHARE, CAPACITY_SHARE_OF_TRACE = 0.99, 0.9
# The lowest capacity that is looked for, in requests per second.
LOWEST = 0.01
# The burst: duration in seconds, multiple of the capacity, and start. WINDOW is the resolution of
# the recovery time.
BURST_SECONDS, BURST_TIMES, BURST_AT = 10.0, 10.0, 60.0
WINDOW = 0.5
QUIET, FLOOD = "quiet", "flood"


@attrs.frozen(kw_only=True)
class Cell:
    """One simulation.

    Attributes:
        rate: Offered requests per second.
        tenants: Names of tenants and their shares of the rate.
        flood: Requests per second of a second tenant. The first one, `quiet`, then asks for the same
            as without it, and the times to the first token are only its own.
        burst: Additional load as (start, end, rate).
        known: What its operator has measured, for contenders that are tuned by a formula.
        even: Whether a trace's requests come at Poisson times instead of their own. Those that would
            be late even alone are then not judged.
    """

    scenario: Scenario
    contender: str
    rate: float
    seed: int
    retry: Retry = "none"
    tenants: tuple[tuple[str, float], ...] = ()
    flood: float = 0.0
    burst: tuple[float, float, float] | None = None
    known: Known | None = None
    even: bool = False


def cells(scenario: Scenario, contender: str, rate: float, seeds: Sequence[int], **more: Any) -> list[Cell]:
    """Return one cell for each seed."""
    return [Cell(scenario=scenario, contender=contender, rate=rate, seed=seed, **more) for seed in seeds]


def setup(scenario: Scenario, seed: int = 0, known: Known | None = None) -> Setup:
    """Return what a policy may know in a scenario."""
    size = scenario.size
    limits = {"max_num_seqs": size.max_num_seqs, "max_num_batched_tokens": size.max_num_batched_tokens, "kv_tokens": size.kv_tokens}
    return Setup(slo=scenario.slo, **limits, min_step_tokens=size.max_num_seqs, known=known, seed=seed)


def play(cell: Cell, watch: Callable[[AdmissionController], None] | None = None) -> tuple[list[Request], StepEngine]:
    """Simulate a cell and return its requests and its engine; `watch` is called after each step."""
    scenario = cell.scenario
    engine = StepEngine(scenario.size, scenario.law, cell.seed)
    admission = make(cell.contender, setup(scenario, cell.seed, cell.known))
    world = World([engine], admission, scenario.patience, cell.retry, scenario.slowness(), cell.seed)
    if watch is not None:
        world.watch = functools.partial(watch, admission)
    asked = _drawn(cell) if scenario.trace is None else _recorded(cell, scenario.trace)
    world.run(asked, scenario.seconds + 120.0)
    return asked, engine


def _drawn(cell: Cell) -> list[Request]:
    """Draw the requests of a cell from the mix of its scenario."""
    scenario = cell.scenario
    times: Iterable[float] = arrivals(cell.rate, 0.0, scenario.seconds, cell.seed, scenario.shape)
    if cell.burst is not None:
        start, end, rate = cell.burst
        times = sorted([*times, *arrivals(rate, start, end, cell.seed + 1000)])
    later = None if scenario.later is None else (scenario.seconds / 2, scenario.later)
    if cell.flood:
        seed = cell.seed + 1000
        flood = requests(scenario.mix, arrivals(cell.flood, 0.0, scenario.seconds, seed), seed, {FLOOD: 1.0})
        both = heapq.merge(requests(scenario.mix, iter(times), cell.seed, {QUIET: 1.0}), flood, key=lambda request: request.due)
        return [attrs.evolve(request, number=number) for number, request in enumerate(both)]
    return list(requests(scenario.mix, iter(times), cell.seed, dict(cell.tenants) or None, later))


def _recorded(cell: Cell, trace: Path) -> list[Request]:
    times = arrivals(cell.rate, 0.0, cell.scenario.seconds, cell.seed) if cell.even else None
    return window(trace, cell.rate, cell.scenario.seconds, cell.seed, arrivals=times)


def run(cell: Cell, watch: Callable[[AdmissionController], None] | None = None) -> Verdict:
    scenario = cell.scenario
    asked, engine = play(cell, watch)
    end = scenario.seconds - scenario.cool_down
    judged = [request for request in asked if scenario.warm_up <= request.due < end]
    if cell.even and scenario.trace is not None:
        judged = [request for request in judged if kept(request, scenario.slo) or _able_alone(scenario, request)]
    verdict = judge(judged, scenario.classes, scenario.slo, end - scenario.warm_up, engine.preemptions)
    if cell.flood:
        verdict.ttfts = sorted(one.first - one.sent for one in judged if one.tenant == QUIET and one.first is not None)
    return verdict


def _able_alone(scenario: Scenario, request: Request) -> bool:
    """Whether a request meets the SLO if it has the engine alone."""
    same = Request(0, 0.0, 0, request.prompt, request.output)
    engine = StepEngine(scenario.size, scenario.law, 0)
    World([engine], AdmissionController(Unlimited()), scenario.patience).run([same], float("inf"))
    return kept(same, scenario.slo)


def recovery(cells: Sequence[Cell]) -> float | None:
    """Return the seconds from the burst's end to recovery over all seeds, or None.

    Recovered: 90 % of the requests meet the SLO for three seconds.
    """
    asked: list[Request] = []
    for cell in cells:
        asked += play(cell)[0]
    scenario, burst = cells[0].scenario, cells[0].burst
    assert burst is not None
    over = burst[1]
    shares = []
    for number in range(int((scenario.seconds - scenario.cool_down - over) / WINDOW)):
        start = over + number * WINDOW
        due = [request for request in asked if start <= request.due < start + WINDOW]
        shares.append(sum(kept(request, scenario.slo) for request in due) / len(due) if due else 1.0)
    for number in range(len(shares) - 5):
        if all(share >= 0.9 for share in shares[number : number + 6]):
            return number * WINDOW
    return None


class TestBed:
    """Runs cells on all processors and caches their verdicts."""

    def __init__(self, pool: ProcessPoolExecutor, progress: Callable[[int], object]) -> None:
        self._pool = pool
        self._progress = progress
        self._done: dict[Cell, Verdict] = {}

    def run(self, cells: Iterable[Cell]) -> None:
        missing = [cell for cell in dict.fromkeys(cells) if cell not in self._done]
        for cell, verdict in zip(missing, self._pool.map(run, missing, chunksize=2), strict=True):
            self._done[cell] = verdict
            self._progress(1)

    def of(self, cells: Iterable[Cell]) -> Verdict:
        """Return the combined verdict of the cells."""
        cells = list(cells)
        self.run(cells)
        return together([self._done[cell] for cell in cells])

    def recoveries(self, groups: Sequence[Sequence[Cell]]) -> list[float | None]:
        return list(self._pool.map(recovery, groups))


def capacity(bench: TestBed, scenario: Scenario, seeds: Sequence[int]) -> float:
    """Return the highest rate, within 2 %, at which enough requests meet the SLO without any control.

    A trace's requests come at Poisson times. Otherwise one burst would decide.
    """
    need = CAPACITY_SHARE if scenario.trace is None else CAPACITY_SHARE_OF_TRACE

    def enough(rate: float) -> bool:
        verdict = bench.of(cells(scenario, NONE, rate, seeds, even=True))
        return verdict.offered > 0 and verdict.kept / verdict.offered >= need

    low, high = 0.5, 1.0
    while enough(high):
        low, high = high, 2 * high
    while not enough(low) and low > LOWEST:
        low, high = low / 2, low
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def best_fixed(bench: TestBed, scenario: Scenario, rate: float, seeds: Sequence[int], tuning: int) -> tuple[str, Verdict]:
    """Find the best limit, and for the two best limits the best bound on the wait."""
    assert scenario.slo.ttft is not None
    middle = WAITS[1] * scenario.slo.ttft
    of = {limit: cells(scenario, f"fixed:{limit}:{middle:g}", rate, seeds[:tuning]) for limit in LIMITS}
    bench.run(itertools.chain.from_iterable(of.values()))

    def goodput(limit: int) -> float:
        return bench.of(of[limit]).goodput

    leading = sorted(LIMITS, key=goodput, reverse=True)[:2]
    names = [f"fixed:{limit}:{wait * scenario.slo.ttft:g}" for limit in leading for wait in WAITS]
    return best(bench, scenario, names, rate, seeds, tuning)


def flags() -> Iterator[str]:
    for queued, tokens in itertools.product(vllm.QUEUED, vllm.QUEUED_TOKENS):
        yield f"vllm:{queued}:{tokens}"


def thinnings(rate: float) -> Iterator[str]:
    for part in thin.SHARES:
        yield f"thin:{part * rate:.4g}"


def best(bench: TestBed, scenario: Scenario, names: Iterable[str], rate: float, seeds: Sequence[int], tuning: int) -> tuple[str, Verdict]:
    """Return the contender with the most goodput in hindsight.

    The first `tuning` seeds choose the contender; the verdict covers all seeds.
    """
    names = list(names)
    bench.run(itertools.chain.from_iterable(cells(scenario, name, rate, seeds[:tuning]) for name in names))

    def of(name: str, chosen: Sequence[int]) -> Verdict:
        return bench.of(cells(scenario, name, rate, chosen))

    # The two best are compared over all seeds, because the first seeds may favour one by chance.
    leading = sorted(names, key=lambda name: of(name, seeds[:tuning]).goodput, reverse=True)[:2]
    name = max(leading, key=lambda name: of(name, seeds).goodput)
    return name, of(name, seeds)
