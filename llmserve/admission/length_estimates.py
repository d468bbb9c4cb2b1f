"""Estimates of answer and prompt lengths, from fading counts in buckets that grow by a quarter."""

import math
from bisect import bisect
from collections import defaultdict

import attrs

from llmserve.admission.ticket import Ticket

GROWTH = 1.25
BUCKETS = 64  # up to 1.6 million tokens
# The smallest number of tokens in each bucket or a later one.
_FIRST = (*(math.ceil(GROWTH**bucket) for bucket in range(BUCKETS)), math.inf)
# Where each bucket begins in tokens, the last bucket first.
_BEGINS = tuple(GROWTH**bucket for bucket in reversed(range(BUCKETS)))
# Number of steps between two looks at the progress of the running answers.
LOOK = 16
# How much more each new length counts than the one before it: 500 lengths later, one counts half.
FRESHER = 2 ** (1 / 500)


def bucket_of(tokens: int) -> int:
    """Return the bucket of a length."""
    return bisect(_FIRST, tokens, 1) - 1


class Lengths:
    """The lengths of answers in tokens, learned also from answers that have not ended yet.

    The first answers to end are the short ones, so their mean is too low while the long ones go on.
    Therefore this class counts, for each bucket of lengths, how many answers got that far and how
    many ended there (the Kaplan-Meier estimate). An answer that was cut only got that far. Old
    counts fade. Lengths without observations use a rule of thumb without a scale: an answer is
    expected to double the length that it has reached.
    """

    # The rule of thumb's chance that an answer ends within a bucket, which doubles the expected
    # length. Below `COMMON`, a usual length for chats, the chance is `EARLY_CHANCE`. The rule
    # counts as much as two answers.
    CHANCE, EARLY_CHANCE, COMMON, WEIGHT = 0.36, 0.05, 200, 2.0

    def __init__(self) -> None:
        self._reached = [0.0] * BUCKETS
        self._ended = [0.0] * BUCKETS
        self._unit = 1.0
        self._fresh = 0
        self._means = self._expect()

    def reached(self, before: int, bucket: int) -> None:
        """Count an open answer that grew from bucket `before` (-1 for a new one) to `bucket`."""
        for passed in range(before + 1, bucket + 1):
            self._reached[passed] += self._unit

    def ended(self, bucket: int, *, cut: bool = False) -> None:
        """Count an answer that ended in this bucket, or was `cut` there and would have gone on."""
        if not cut:
            self._ended[bucket] += self._unit
        # New answers count more, instead of old ones less: the ratios are the same, and only one
        # bucket changes.
        self._unit *= FRESHER
        if self._unit > 1e100:
            self._reached = [count / self._unit for count in self._reached]
            self._ended = [count / self._unit for count in self._ended]
            self._unit = 1.0
        self._fresh += 1
        if self._fresh >= 8:
            self._means = self._expect()

    def mean(self, beyond: int = 0, most: int | None = None) -> float:
        """Return the expected length of an answer that has `beyond` tokens and may have `most`."""
        found = max(self._means[bucket_of(beyond) if beyond else 0], beyond + 1.0)
        return found if most is None else min(float(most), found)

    def _expect(self) -> list[float]:
        """Return for each bucket the expected length of the answers that reach it."""
        self._fresh = 0
        means = []
        beyond = GROWTH**BUCKETS
        prior = self.WEIGHT * self._unit
        early, later = prior * self.EARLY_CHANCE, prior * self.CHANCE
        for low, ended, reached in zip(_BEGINS, reversed(self._ended), reversed(self._reached), strict=True):
            ends = min((ended + (early if low < self.COMMON else later)) / (reached + prior), 1.0)
            beyond = ends * low * 1.12 + (1 - ends) * beyond
            means.append(beyond)
        means.reverse()
        return means


@attrs.define
class _Progress:
    """A running answer: the engine's step count at its first token, and the bucket it has reached.

    It leaves that bucket with token number `leaves`.
    """

    steps: float
    bucket: int = -1
    leaves: float = -math.inf


class AnswerLengths(Lengths):
    """The lengths of the answers to tickets.

    While `follows` is set, running answers count with the length that they have reached, and the
    `expected_tokens` of their tickets grow. This takes some 10 us for each answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.follows = True
        # For each engine, its running answers and its step count.
        self._running: defaultdict[int, dict[Ticket, _Progress]] = defaultdict(dict)
        self._steps: dict[int, float] = {}

    def first_token(self, ticket: Ticket) -> None:
        """Note the first token of a running ticket."""
        if self.follows:
            self._running[ticket.engine].setdefault(ticket, _Progress(self._steps.get(ticket.engine, 0.0)))

    def record(self, steps: float, engine: int = 0) -> None:
        """Note an engine's step count. Each step adds one token to each of its running answers."""
        last, self._steps[engine] = self._steps.get(engine), steps
        if self.follows and last is not None and steps // LOOK > last // LOOK:
            for ticket, progress in self._running[engine].items():
                made = int(int(steps) - progress.steps) + 1
                if made >= progress.leaves:
                    self._grow(ticket, progress, made)

    def lost(self, ticket: Ticket) -> _Progress | None:
        """Follow a running answer no longer: its engine is gone, or it has ended."""
        return self._running[ticket.engine].pop(ticket, None)

    def left(self, ticket: Ticket) -> None:
        """Note the end of a started ticket.

        An answer that reached its `max_tokens` says only that it is at least as long: clients that
        ask for few tokens must not make the answers to others seem short.
        """
        progress = self.lost(ticket)
        # A request for a vector has no answer.
        if ticket.complete and ticket.max_tokens != 0:
            bucket = bucket_of(ticket.generated)
            self.reached(progress.bucket if progress else -1, bucket)
            self.ended(bucket, cut=ticket.max_tokens is not None and ticket.generated >= ticket.max_tokens)

    def _grow(self, ticket: Ticket, progress: _Progress, made: int) -> None:
        bucket = bucket_of(made)
        self.reached(progress.bucket, bucket)
        progress.bucket, progress.leaves = bucket, _FIRST[bucket + 1]
        expected = max(self._means[bucket], made + 1.0)
        ticket.expected_tokens = expected if ticket.max_tokens is None else min(float(ticket.max_tokens), expected)


class Seen:
    """Quantiles of whole numbers, in buckets that grow by a quarter. Old values fade."""

    def __init__(self) -> None:
        self._lengths = [0.0] * BUCKETS
        self._unit = 1.0
        self._total = 0.0
        self._cached: dict[float, float] = {}
        self._fresh = 0

    def add(self, value: int) -> None:
        bucket = bucket_of(value)
        self._lengths[bucket] += self._unit
        self._total += self._unit
        self._unit *= FRESHER
        if self._unit > 1e100:
            self._lengths = [count / self._unit for count in self._lengths]
            self._total /= self._unit
            self._unit = 1.0
        self._fresh += 1
        if self._fresh >= 16:
            self._fresh = 0
            self._cached.clear()

    def lowest(self, share: float) -> float:
        """Return the lower end of the bucket with the quantile `share` (0 to 1); 0 without data."""
        return self.quantile(share) / GROWTH

    def quantile(self, share: float) -> float:
        """Return the upper end of the bucket with the quantile `share` (0 to 1); 0 without data."""
        found = self._cached.get(share)
        if found is None:
            found = self._cached[share] = self._find(share)
        return found

    def _find(self, share: float) -> float:
        if not self._total:
            return 0.0
        rank, seen = share * self._total, 0.0
        for bucket, count in enumerate(self._lengths):
            seen += count
            if count and seen >= rank:
                return GROWTH ** (bucket + 1)
        return GROWTH**BUCKETS
