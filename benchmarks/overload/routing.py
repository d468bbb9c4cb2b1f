"""Routing between several engines in virtual time: our router and the alternatives, on the same requests."""

import math
import random
from collections.abc import Callable, Sequence

import attrs

from benchmarks.overload.engine import EngineSize, StepEngine
from benchmarks.overload.judge import judge
from benchmarks.overload.laws import H200_1_5B
from benchmarks.overload.recorded import block_sizes, recorded
from benchmarks.overload.traffic import Request, arrivals
from benchmarks.overload.world import World
from benchmarks.workload.traces import MOONCAKE_BLOCK, Arrival
from llmserve.admission import AdmissionController, FixedLimit, LateGate, Policy, Tenants, Ticket
from llmserve.admission.pool.policy import PoolPolicy
from llmserve.admission.pool.prefixes import STEP, PrefixIndex, bits, prefix_keys
from llmserve.admission.pool.router import Router
from llmserve.config import SLO, TenantLimits, TenantTable

# An H200 with a model of Qwen2.5-1.5B's shape: what 141 GB leave beside the weights at 28 KiB a
# token, and vLLM's defaults on this GPU but for the smaller batch.
SIZE = EngineSize(max_num_seqs=256, max_num_batched_tokens=8192, kv_tokens=4_300_000)
# Twice the time of the longest prompt alone would be 8 s. The time per token is Mooncake's.
OBJECTIVES = SLO(ttft=2.0, tpot=0.1)
# A prompt and an answer without anything shared, in tokens.
UNIFORM = 1000, 200
# The weight of each tenant, and its part of the requests.
DEMANDS = {"modest": (1.0, 1.0), "steady": (1.0, 2.0), "gold": (2.0, 2.0), "flood": (1.0, 7.0)}


class LeastLoad(Router):
    """Chooses the engine with the fewest running requests."""

    def best(self, ticket: Ticket, among: int) -> int:
        return min(bits(among), key=lambda engine: self.loads[engine].running)


class RoundRobin(Router):
    """Chooses the engines in turn."""

    _next = 0

    def best(self, ticket: Ticket, among: int) -> int:
        return min(bits(among), key=lambda engine: (engine - self._next) % len(self.loads))

    def started(self, ticket: Ticket, engine: int) -> None:
        self._next = engine + 1
        super().started(ticket, engine)


class RealCaches(PrefixIndex):
    """Knows what every engine's cache really has. The keys of a prompt are those of its blocks."""

    def __init__(self, engines: Sequence[StepEngine]) -> None:
        super().__init__(len(engines))
        self._engines = engines

    def cached(self, prefix: Sequence[int]) -> list[tuple[int, int]]:
        return [(1 << engine.number, tokens) for engine in self._engines if (tokens := engine.cached(prefix))]

    def remember(self, engine: int, prefix: Sequence[int], tokens: int) -> None:
        """Do nothing: the engine remembers."""


def _oracle(engines: Sequence[StepEngine]) -> Router:
    router = Router(len(engines))
    router.prefixes = RealCaches(engines)
    return router


def _none(request: Request) -> tuple[int, ...]:
    return ()


# For each contender the router, and what it gets as a ticket's prefix.
CONTENDERS: dict[str, tuple[Callable[[Sequence[StepEngine]], Router], Callable[[Request], tuple[int, ...]]]] = {
    "llmserve": (lambda engines: Router(len(engines)), lambda request: request.prefix),
    "wait only": (lambda engines: Router(len(engines)), _none),
    "round robin": (lambda engines: RoundRobin(len(engines)), _none),
    "least load": (lambda engines: LeastLoad(len(engines)), _none),
    "oracle": (_oracle, lambda request: tuple(key for key, _ in request.blocks)),
}


def of_trace(trace: Sequence[Arrival], seed: int) -> list[Request]:
    """Return the requests of a trace, with the keys of their prompts."""
    found = recorded(trace, seed)
    for request in found:
        arrival = trace[request.number]
        sizes = block_sizes(arrival)
        tokens = [key * MOONCAKE_BLOCK + place for key, size in zip(arrival.blocks, sizes, strict=True) for place in range(size)]
        request.prefix = prefix_keys(tokens)
    return found


def unshared(count: int, seed: int) -> list[Request]:
    """Return requests of one length without anything shared, Poisson at one per second."""
    prompt, output = UNIFORM
    times = arrivals(1.0, 0.0, math.inf, seed)
    salt = random.Random(f"unshared {seed}")
    keys = [tuple(salt.getrandbits(60) for _ in range(prompt // STEP)) for _ in range(count)]
    return [Request(number, next(times), 0, prompt, output, prefix=keys[number]) for number in range(count)]


def _policy(name: str) -> Policy:
    if name == "lategate":
        return LateGate(OBJECTIVES, SIZE.max_num_seqs, SIZE.max_num_batched_tokens)
    return FixedLimit(SIZE.max_num_seqs + SIZE.max_num_seqs // 8)


def _engines(count: int, seed: int) -> list[StepEngine]:
    return [StepEngine(SIZE, H200_1_5B, 1000 * seed + number, number) for number in range(count)]


@attrs.frozen
class Played:
    """The requests after a simulation, and the engines."""

    requests: list[Request]
    engines: list[StepEngine]

    @property
    def end(self) -> float:
        """When the last answer was complete."""
        return max(request.finished or 0.0 for request in self.requests)

    def figures(self) -> dict[str, float]:
        """Return latencies in seconds, kept requests per second, and shares.

        `hits` is the share of the prompts' tokens that the caches had. `balance` is the computed
        prompt tokens of the busiest engine relative to the mean.
        """
        verdict = judge(self.requests, ["all"], OBJECTIVES, self.requests[-1].due or self.end, 0)
        computed = [engine.prompt_tokens - engine.cached_tokens for engine in self.engines]
        prompts = sum(engine.prompt_tokens for engine in self.engines)
        return {
            **{f"ttft_p{share}": verdict.ttft(share / 100) for share in (50, 95, 99)},
            "goodput": verdict.goodput,
            "met": verdict.kept / verdict.offered,
            "hits": 1 - sum(computed) / prompts,
            "balance": max(computed) * len(computed) / sum(computed),
        }


def play(requests: Sequence[Request], contender: str, engines: int, rate: float, policy: str = "fixed", seed: int = 1) -> Played:
    """Simulate copies of the requests at a mean rate per second; inf sends all at the start."""
    router, prefix = CONTENDERS[contender]
    pool = _engines(engines, seed)
    admission = AdmissionController(PoolPolicy([_policy(policy) for _ in pool], router=router(pool)), max_wait=math.inf)
    factor = len(requests) / requests[-1].due / rate
    asked = [attrs.evolve(request, due=request.due * factor, prefix=prefix(request)) for request in requests]
    World(pool, admission, patience=math.inf).run(asked, math.inf)
    return Played(asked, pool)


def capacity(requests: Sequence[Request], engines: int) -> float:
    """Return the requests per second that the engines complete if all requests wait from the start."""
    return len(requests) / play(requests, "wait only", engines, math.inf).end


def shares(engines: int, streams: int, requests: int, seed: int = 1) -> dict[str, float]:
    """Let the tenants of `DEMANDS` ask for more than the engines carry, all from the start.

    `streams` requests run at once. Returns the starts of each tenant relative to its fair share,
    from the moment when the engines are full until the first tenant has nothing left.
    """
    rng = random.Random(f"shares {seed}")
    names = rng.choices(list(DEMANDS), [demand for _, demand in DEMANDS.values()], k=requests)
    asked = [Request(number, 0.0, 0, 100, 1 + int(rng.expovariate(1 / 100)), tenant) for number, tenant in enumerate(names)]
    pool = _engines(engines, seed)
    policy = PoolPolicy([FixedLimit(-(-streams // engines)) for _ in pool])
    weights = Tenants(TenantTable({name: TenantLimits(weight=weight) for name, (weight, _) in DEMANDS.items()}))
    World(pool, AdmissionController(policy, max_wait=math.inf, tenants=weights), patience=math.inf).run(asked, math.inf)
    starts = {name: sorted(request.admitted or 0.0 for request in asked if request.tenant == name) for name in DEMANDS}
    until = min(times[-1] for times in starts.values())
    counts = {name: sum(0 < at <= until for at in times) for name, times in starts.items()}
    level = sum(counts.values()) / sum(weight for weight, _ in DEMANDS.values())
    return {name: counts[name] / level / weight for name, (weight, _) in DEMANDS.items()}
