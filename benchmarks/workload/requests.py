"""Prompts (token ids, so that lengths are exact), lengths and patience. Pure and seeded."""

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from benchmarks.workload.traces import MOONCAKE_BLOCK, Arrival


class Lengths(Protocol):
    """A distribution of lengths in tokens."""

    def draw(self, rng: random.Random) -> int: ...


@attrs.frozen
class Fixed:
    tokens: int

    def __str__(self) -> str:
        return str(self.tokens)

    def draw(self, rng: random.Random) -> int:
        return self.tokens


@attrs.frozen
class Normal:
    """A normal distribution, rounded and at least `least`."""

    mean: float
    deviation: float
    least: int = 1

    def __str__(self) -> str:
        return f"normal:{self.mean:g}:{self.deviation:g}"

    def draw(self, rng: random.Random) -> int:
        return max(self.least, round(rng.gauss(self.mean, self.deviation)))


@attrs.frozen
class LogNormal:
    """A log-normal distribution, like real prompts', rounded and at least `least`.

    Attributes:
        median: Median length in tokens.
        sigma: Standard deviation of the length's logarithm.
    """

    median: float
    sigma: float
    least: int = 1

    def __str__(self) -> str:
        return f"lognormal:{self.median:g}:{self.sigma:g}"

    def draw(self, rng: random.Random) -> int:
        return max(self.least, round(self.median * rng.lognormvariate(0.0, self.sigma)))


@attrs.frozen
class Empirical:
    """Lengths drawn from observed ones."""

    observed: tuple[int, ...] = attrs.field(validator=attrs.validators.min_len(1))

    def __str__(self) -> str:
        return f"empirical:{len(self.observed)} values"

    def draw(self, rng: random.Random) -> int:
        return rng.choice(self.observed)


@attrs.frozen(kw_only=True)
class Turn:
    """A later turn of a conversation: new tokens, and the length of the next answer."""

    prompt: tuple[int, ...]
    max_tokens: int


@attrs.frozen(kw_only=True)
class Item:
    """One request to send.

    Attributes:
        cancel_after: The client's patience in seconds; None is unlimited.
        follow_ups: Later turns of the conversation. Each is sent after the previous answer, with
            the whole conversation before it.
        lead: Whether the request only brings its client out of step with the others.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    tenant: str = "default"
    priority: int = 0
    cancel_after: float | None = None
    follow_ups: tuple[Turn, ...] = ()
    lead: bool = False

    def after(self, answer: tuple[int, ...]) -> "Item":
        """Return the next turn, given the answer to this one."""
        turn, *rest = self.follow_ups
        prompt = self.prompt + answer + turn.prompt
        return attrs.evolve(self, prompt=prompt, max_tokens=turn.max_tokens, follow_ups=tuple(rest))


@attrs.frozen(kw_only=True)
class Workload:
    """A stream of items, equal for equal seeds.

    Attributes:
        prompt: Distribution of prompt lengths in tokens.
        output: Distribution of answer lengths in tokens. Answers have exactly the drawn length,
            because the end-of-sequence token is ignored.
        vocabulary: Range [low, high) of token ids, without special tokens.
        shared_prefix: Tokens that every prompt begins with, in addition to its own length.
        turns: Number of turns of a conversation; each turn has its own lengths.
        tenants: Tenants, drawn with equal probability.
        priorities: Priorities, drawn with equal probability.
        cancelling: Share of requests whose client leaves after `patience` seconds.
        salt: The run's salt. Another one has the same lengths and other tokens, shared prefixes
            included, so that no prompt is in the prefix cache of a server that an earlier run used.
    """

    prompt: Lengths
    output: Lengths
    vocabulary: tuple[int, int]
    seed: int = 1
    shared_prefix: int = 0
    turns: Lengths = Fixed(1)
    tenants: tuple[str, ...] = ("default",)
    priorities: tuple[int, ...] = (0,)
    cancelling: float = 0.0
    patience: float = 1.0
    salt: str = ""

    def items(self, part: str = "", salt: str = "") -> Iterator[Item]:
        """Yield items without end.

        Another `part` (a warm-up, a point of a sweep) has other prompts and the same shared prefix.
        Another `salt` has the same lengths and other tokens, so that no prompt is in a cache that
        the first stream has filled.
        """
        prefix = self._tokens(random.Random(f"prefix {self.seed} {self.salt}"), self.shared_prefix)
        shapes, tokens = random.Random(f"shapes {self.seed} {part}"), random.Random(f"tokens {self.seed} {part} {salt} {self.salt}")
        while True:
            first, *rest = (self._turn(shapes, tokens) for _ in range(max(1, self.turns.draw(shapes))))
            yield self._item(shapes, prefix + first.prompt, first.max_tokens, tuple(rest))

    def replay(self, trace: Sequence[Arrival], part: str = "", salt: str = "") -> Iterator[Item]:
        """Yield an item per request of a trace, with its lengths and the prefixes it shares."""
        shapes, tokens = random.Random(f"shapes {self.seed} {part}"), random.Random(f"tokens {self.seed} {part} {salt} {self.salt}")
        for arrival in trace:
            seeds = [f"block {self.seed} {salt} {self.salt} {number}" for number in arrival.blocks]
            blocks = [self._tokens(random.Random(seed), MOONCAKE_BLOCK) for seed in seeds]
            prompt = tuple(itertools.chain.from_iterable(blocks))[: arrival.prompt]
            yield self._item(shapes, prompt + self._tokens(tokens, arrival.prompt - len(prompt)), arrival.output, ())

    def _turn(self, shapes: random.Random, tokens: random.Random) -> Turn:
        return Turn(prompt=self._tokens(tokens, self.prompt.draw(shapes)), max_tokens=self.output.draw(shapes))

    def _item(self, rng: random.Random, prompt: tuple[int, ...], max_tokens: int, follow_ups: tuple[Turn, ...]) -> Item:
        return Item(
            prompt=prompt,
            max_tokens=max_tokens,
            tenant=rng.choice(self.tenants),
            priority=rng.choice(self.priorities),
            cancel_after=self.patience if rng.random() < self.cancelling else None,
            follow_ups=follow_ups,
        )

    def _tokens(self, rng: random.Random, count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(*self.vocabulary), k=count))


def parse_lengths(text: str) -> Lengths:
    """Parse a distribution of lengths in tokens. Raises ValueError.

    The forms are `128`, `normal:MEAN:DEVIATION`, `lognormal:MEDIAN:SIGMA` and `empirical:FILE` (a
    number per line).
    """
    match text.split(":", 2):
        case [tokens] if tokens.isdigit() and int(tokens) > 0:
            return Fixed(int(tokens))
        case ["normal", mean, deviation]:
            return Normal(float(mean), float(deviation))
        case ["lognormal", median, sigma]:
            return LogNormal(float(median), float(sigma))
        case ["empirical", *name]:
            return Empirical(tuple(int(line) for line in Path(":".join(name)).read_text().split()))
    raise ValueError(f"{text!r} is not a length: write 128, normal:128:32, lognormal:128:0.6 or empirical:FILE")
