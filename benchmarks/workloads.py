"""What is asked: prompts, lengths and patience. Pure and seeded; a prompt is token ids, so that its length is exact."""

import random
from collections.abc import Iterator
from typing import Protocol

import attrs


class Lengths(Protocol):
    """A distribution of lengths in tokens."""

    def draw(self, rng: random.Random) -> int: ...


@attrs.frozen
class Fixed:
    """Always the same."""

    tokens: int

    def draw(self, rng: random.Random) -> int:
        return self.tokens


@attrs.frozen
class Normal:
    """Rounded, and never below `least`."""

    mean: float
    deviation: float
    least: int = 1

    def draw(self, rng: random.Random) -> int:
        return max(self.least, round(rng.gauss(self.mean, self.deviation)))


@attrs.frozen
class LogNormal:
    """By its median and the standard deviation of its logarithm, as real prompts are spread; rounded, never below `least`."""

    median: float
    sigma: float
    least: int = 1

    def draw(self, rng: random.Random) -> int:
        return max(self.least, round(self.median * rng.lognormvariate(0.0, self.sigma)))


@attrs.frozen
class Empirical:
    """Drawn from what was observed."""

    observed: tuple[int, ...] = attrs.field(converter=tuple, validator=attrs.validators.min_len(1))

    def draw(self, rng: random.Random) -> int:
        return rng.choice(self.observed)


@attrs.frozen(kw_only=True)
class Item:
    """One request to send. `cancel_after` is the client's patience in seconds, None for no end of it."""

    prompt: tuple[int, ...]
    max_tokens: int
    tenant: str = "default"
    priority: int = 0
    cancel_after: float | None = None


@attrs.frozen(kw_only=True)
class Workload:
    """A stream of items, the same for the same seed.

    Attributes:
        prompt, output: distributions of lengths in tokens. Answers have exactly the drawn length: the end of an answer is ignored.
        vocabulary: token ids are drawn from [low, high), a range without special tokens.
        shared_prefix: tokens that every prompt begins with, on top of its own length.
        tenants: names drawn with equal chances.
        cancelling: share of clients that leave after `patience` seconds.
    """

    prompt: Lengths
    output: Lengths
    vocabulary: tuple[int, int]
    seed: int = 1
    shared_prefix: int = 0
    tenants: tuple[str, ...] = ("default",)
    cancelling: float = 0.0
    patience: float = 1.0

    def items(self, part: str = "") -> Iterator[Item]:
        """An endless stream. Another `part` (a warm-up, a point of a sweep) has other prompts and the same shared prefix."""
        prefix = self._tokens(random.Random(f"prefix {self.seed}"), self.shared_prefix)
        rng = random.Random(f"items {self.seed} {part}")
        while True:
            yield Item(
                prompt=prefix + self._tokens(rng, self.prompt.draw(rng)),
                max_tokens=self.output.draw(rng),
                tenant=rng.choice(self.tenants),
                cancel_after=self.patience if rng.random() < self.cancelling else None,
            )

    def _tokens(self, rng: random.Random, count: int) -> tuple[int, ...]:
        low, high = self.vocabulary
        return tuple(rng.randrange(low, high) for _ in range(count))
