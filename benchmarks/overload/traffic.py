"""The requests of a simulation: lengths, classes, prefixes, tenants and times. Pure and seeded."""

import itertools
import math
import random
from collections.abc import Iterator

import attrs

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
        computed: Tokens that the engine computed for the request.
    """

    number: int
    due: float
    kind: int
    prompt: int
    output: int
    tenant: str = "default"
    prefix: int | None = None
    prefix_tokens: int = 0
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
        tokens = mix.prefix_tokens if prefix is not None else 0
        tenant = rng.choices(names, weights)[0]
        # The later mix has other prefixes.
        shared = prefix if prefix is None or not before else -1 - prefix
        yield Request(number, due, before + kind, prompt + tokens, output, tenant, shared, tokens)
