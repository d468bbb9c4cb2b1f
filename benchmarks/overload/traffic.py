"""The requests of a simulation: lengths, classes, prefixes, tenants and times. Pure and seeded."""

import itertools
import math
import random
from collections.abc import Iterator

import attrs

from benchmarks.overload.engine import BLOCK
from benchmarks.workload.arrivals import gamma


@attrs.frozen
class LengthClass:
    """Requests of one kind.

    Attributes:
        share: Share of all requests.
        prompt: (median, sigma, maximum) of the log-normal prompt length.
        output: The same of the answer length.
    """

    name: str
    share: float
    prompt: tuple[float, float, int]
    output: tuple[float, float, int]


@attrs.frozen(kw_only=True)
class Mix:
    """Classes of requests.

    Attributes:
        prefixed: Share of requests that begin with a shared prefix.
        prefixes: Number of different prefixes.
        prefix_tokens: Length of a prefix.
    """

    classes: tuple[LengthClass, ...]
    prefixed: float = 0.0
    prefixes: int = 1
    prefix_tokens: int = 0


@attrs.define(eq=False, slots=True)
class Request:
    """One request as its client sees it; times are seconds of the simulation, or None.

    Attributes:
        sent: Time of the last attempt; latencies of a retry count from it.
        blocks: Keys and tokens of the blocks at the prompt's beginning that other requests may share.
        prefix: What admission gets as the ticket's `prefix`.
        engine: The number of the engine that got the request.
        computed: Tokens that the engine computed for the request.
    """

    number: int
    due: float
    kind: int
    prompt: int
    output: int
    tenant: str = "default"
    blocks: tuple[tuple[int, int], ...] = ()
    prefix: tuple[int, ...] = ()
    sent: float = 0.0
    tries: int = 0
    admitted: float | None = None
    first: float | None = None
    finished: float | None = None
    hint: float | None = None
    hinted_at: float | None = None
    refusals: int = 0
    refused_after: float | None = None
    left: bool = False
    engine: int = 0
    computed: int = 0


def _length(rng: random.Random, shape: tuple[float, float, int]) -> int:
    median, sigma, longest = shape
    return max(1, min(longest, round(rng.lognormvariate(math.log(median), sigma))))


def arrivals(rate: float, start: float, end: float, seed: int, shape: float = 1.0) -> Iterator[float]:
    """Yield send times between `start` and `end`: Poisson if `shape` is 1, bursty if it is less."""
    return itertools.takewhile(lambda time: time < end, (start + gap for gap in gamma(rate, shape, seed)))


def requests(
    mix: Mix, times: Iterator[float], seed: int, tenants: dict[str, float] | None = None, later: tuple[float, Mix] | None = None
) -> Iterator[Request]:
    """Yield one request per time; `tenants` maps tenants to their shares of the requests.

    `later` is a time and the mix from then on. Its classes are numbered after those of the first
    mix.
    """
    rng = random.Random(f"requests {seed}")
    names = list(tenants or {"default": 1.0})
    weights = list((tenants or {"default": 1.0}).values())
    before = 0
    for number, due in enumerate(times):
        if later is not None and due >= later[0]:
            before, mix, later = len(mix.classes), later[1], None
        kind = rng.choices(range(len(mix.classes)), [one.share for one in mix.classes])[0]
        chosen = mix.classes[kind]
        prompt, output = _length(rng, chosen.prompt), _length(rng, chosen.output)
        prefix = rng.randrange(mix.prefixes) if rng.random() < mix.prefixed else None
        tenant = rng.choices(names, weights)[0]
        if prefix is None:
            yield Request(number, due, before + kind, prompt, output, tenant)
            continue
        # The later mix has other prefixes.
        blocks = ((-1 - prefix if before else prefix, mix.prefix_tokens // BLOCK * BLOCK),)
        yield Request(number, due, before + kind, prompt + mix.prefix_tokens, output, tenant, blocks)
