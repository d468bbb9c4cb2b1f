"""Prompts (token ids, so that lengths are exact), lengths and patience. Pure and seeded."""

import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import attrs
import msgspec

from benchmarks.workload.think_time import ThinkTime
from benchmarks.workload.traces import MOONCAKE_BLOCK, Arrival


class Fixed(msgspec.Struct, frozen=True, tag=True):
    tokens: int

    def __str__(self) -> str:
        return str(self.tokens)

    def draw(self, rng: random.Random) -> int:
        return self.tokens


class Normal(msgspec.Struct, frozen=True, tag=True):
    """A normal distribution, rounded and at least `least`."""

    mean: float
    deviation: float
    least: int = 1

    def __str__(self) -> str:
        return f"normal:{self.mean:g}:{self.deviation:g}"

    def draw(self, rng: random.Random) -> int:
        return max(self.least, round(rng.gauss(self.mean, self.deviation)))


class LogNormal(msgspec.Struct, frozen=True, tag=True):
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


class Empirical(msgspec.Struct, frozen=True, tag=True):
    """Lengths drawn from observed ones."""

    observed: tuple[int, ...]
    name: str = "empirical"

    def __post_init__(self) -> None:
        if not self.observed:
            raise ValueError(f"{self.name}: there are no lengths")

    def __str__(self) -> str:
        return f"{self.name} (median {statistics.median_low(self.observed)})"

    def draw(self, rng: random.Random) -> int:
        return rng.choice(self.observed)


Distribution: TypeAlias = Fixed | Normal | LogNormal | Empirical


class AtMost(msgspec.Struct, frozen=True, tag=True):
    """The greatest lengths of answers that the model ends."""

    lengths: Distribution

    def __str__(self) -> str:
        return f"at most {self.lengths}"

    def draw(self, rng: random.Random) -> int:
        return self.lengths.draw(rng)


class Text(msgspec.Struct, frozen=True):
    """A prompt as text, its length in tokens, and the length of the answer that it once had."""

    prompt: str
    tokens: int
    answer: int | None = None


class Texts(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Prompts of a file, each sent once before any is sent again.

    Attributes:
        with_images: Number of entries that were left out because they have images.
        lengths: Lengths of the prompts.
        answers: Lengths of the answers in the file; None if some have none.
    """

    texts: tuple[Text, ...]
    lengths: Empirical
    answers: Empirical | None = None
    with_images: int = 0

    def __str__(self) -> str:
        return str(self.lengths)

    def draw(self, rng: random.Random) -> int:
        return self.lengths.draw(rng)


# A distribution of lengths in tokens.
Lengths: TypeAlias = Distribution | AtMost | Texts


@attrs.frozen(kw_only=True)
class Turn:
    """A turn of a conversation: new tokens, the length of the answer, and the seconds since the answer before."""

    prompt: tuple[int, ...]
    max_tokens: int
    think: float = 0.0


@attrs.frozen(kw_only=True)
class Item:
    """One request to send.

    Attributes:
        adapter: The LoRA adapter; empty is the model itself.
        text: The prompt as text of `text_tokens` tokens, if it has no token ids.
        natural: Whether the model may end the answer; `max_tokens` is then only the greatest length.
        cancel_after: The client's patience in seconds; None is unlimited.
        timeout: Seconds until the client gives up an answer; None is never.
        follow_ups: Later turns of the conversation. Each is sent after the previous answer, with
            the whole conversation before it.
        lead: Whether the request only brings its client out of step with the others.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    tenant: str = "default"
    priority: int = 0
    adapter: str = ""
    natural: bool = False
    cancel_after: float | None = None
    timeout: float | None = None
    follow_ups: tuple[Turn, ...] = ()
    lead: bool = False
    text: str = ""
    text_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt) or self.text_tokens

    def after(self, answer: tuple[int, ...]) -> "Item":
        """Return the next turn, given the answer to this one."""
        turn, *rest = self.follow_ups
        prompt = self.prompt + answer + turn.prompt
        return attrs.evolve(self, prompt=prompt, max_tokens=turn.max_tokens, follow_ups=tuple(rest))


@attrs.frozen(kw_only=True)
class Workload:
    """A stream of items, equal for equal seeds.

    Attributes:
        prompt: Distribution of prompt lengths in tokens, or the prompts of a file.
        output: Distribution of answer lengths in tokens. Answers have exactly the drawn length,
            because the end-of-sequence token is ignored, or with `natural` at most that length.
        natural: Whether the model ends its answers.
        vocabulary: Range [low, high) of token ids, without special tokens.
        shared_prefix: Tokens that every prompt begins with, in addition to its own length.
        turns: Number of turns of a conversation; each turn has its own lengths.
        think: Time between an answer and the next turn; None is none.
        adapters: LoRA adapters with their shares of the requests; the rest is for the model itself.
        tenants: Tenants, drawn with equal probability.
        priorities: Priorities, drawn with equal probability.
        cancelling: Share of requests whose client leaves after `patience` seconds.
        timeout: Seconds until a client gives up an answer; None is never.
        salt: The run's salt. Another one has the same lengths and other tokens, shared prefixes
            included, so that no prompt is in the prefix cache of a server that an earlier run used.
    """

    prompt: Lengths
    output: Distribution | AtMost
    vocabulary: tuple[int, int]
    seed: int = 1
    shared_prefix: int = 0
    turns: Distribution = attrs.field(default=Fixed(1))
    think: ThinkTime | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    tenants: tuple[str, ...] = ("default",)
    priorities: tuple[int, ...] = (0,)
    cancelling: float = 0.0
    patience: float = 1.0
    natural: bool = False
    timeout: float | None = None
    salt: str = ""

    def items(self, part: str = "", salt: str = "") -> Iterator[Item]:
        """Yield items without end.

        Another `part` (a warm-up, a point of a sweep) has other prompts and the same shared prefix.
        Another `salt` has the same lengths and other tokens, so that no prompt is in a cache that
        the first stream has filled.
        """
        prefix = self._tokens(random.Random(f"prefix {self.seed} {self.salt}"), self.shared_prefix)
        shapes, tokens = random.Random(f"shapes {self.seed} {part}"), random.Random(f"tokens {self.seed} {part} {salt} {self.salt}")
        if isinstance(self.prompt, Texts):
            yield from self._of_file(shapes, self.prompt)
        while True:
            first, *rest = (self._turn(shapes, tokens, number) for number in range(max(1, self.turns.draw(shapes))))
            yield self._item(shapes, prefix + first.prompt, first.max_tokens, tuple(rest))

    def replay(self, trace: Sequence[Arrival], part: str = "", salt: str = "") -> Iterator[Item]:
        """Yield an item per request of a trace, with its lengths and the prefixes it shares."""
        shapes, tokens = random.Random(f"shapes {self.seed} {part}"), random.Random(f"tokens {self.seed} {part} {salt} {self.salt}")
        for arrival in trace:
            seeds = [f"block {self.seed} {salt} {self.salt} {number}" for number in arrival.blocks]
            blocks = [self._tokens(random.Random(seed), MOONCAKE_BLOCK) for seed in seeds]
            prompt = tuple(itertools.chain.from_iterable(blocks))[: arrival.prompt]
            prompt += self._tokens(tokens, arrival.prompt - len(prompt))
            later = [Turn(prompt=self._tokens(tokens, turn.prompt), max_tokens=turn.output, think=turn.think) for turn in arrival.later]
            yield self._item(shapes, prompt, arrival.output, tuple(later))

    def _of_file(self, shapes: random.Random, file: Texts) -> Iterator[Item]:
        """Yield the prompts of a file, with the lengths of their own answers if these are the output."""
        output = self.output.lengths if isinstance(self.output, AtMost) else self.output
        own = output == file.answers
        order = list(file.texts)
        shapes.shuffle(order)
        for text in itertools.cycle(order):
            max_tokens = text.answer if own and text.answer is not None else output.draw(shapes)
            yield attrs.evolve(self._item(shapes, (), max_tokens, ()), text=text.prompt, text_tokens=text.tokens)

    def _turn(self, shapes: random.Random, tokens: random.Random, number: int) -> Turn:
        prompt, max_tokens = self._tokens(tokens, self.prompt.draw(shapes)), self.output.draw(shapes)
        return Turn(prompt=prompt, max_tokens=max_tokens, think=self.think.draw(shapes) if self.think is not None and number else 0.0)

    def _item(self, rng: random.Random, prompt: tuple[int, ...], max_tokens: int, follow_ups: tuple[Turn, ...]) -> Item:
        return Item(
            prompt=prompt,
            max_tokens=max_tokens,
            tenant=rng.choice(self.tenants),
            priority=rng.choice(self.priorities),
            natural=self.natural,
            cancel_after=self.patience if rng.random() < self.cancelling else None,
            timeout=self.timeout,
            follow_ups=follow_ups,
            adapter=self._adapter(rng),
        )

    def _adapter(self, rng: random.Random) -> str:
        if not self.adapters:
            return ""
        shares = {"": max(0.0, 1 - sum(share for _, share in self.adapters)), **dict(self.adapters)}
        return rng.choices(list(shares), list(shares.values()))[0]

    def _tokens(self, rng: random.Random, count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(*self.vocabulary), k=count))


def parse_lengths(text: str) -> Distribution:
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
            path = Path(":".join(name))
            return Empirical(tuple(int(line) for line in path.read_text().split()), path.name)
    raise ValueError(f"{text!r} is not a length: write 128, normal:128:32, lognormal:128:0.6 or empirical:FILE")
