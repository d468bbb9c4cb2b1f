"""How long answers get, and what prompts are asked for: counts in buckets that grow by a quarter, old ones fading."""

import math

GROWTH = 1.25
BUCKETS = 64  # up to 1.6 million tokens
_SCALE = 1 / math.log(GROWTH)


def bucket_of(tokens: float) -> int:
    """Where a length belongs."""
    return min(BUCKETS - 1, int(math.log(max(tokens, 1)) * _SCALE))


class Lengths:
    """How many tokens answers have, learnt also from those that have not ended yet.

    The first answers to end are the short ones, so their mean says too little for as long as the long ones go on. So this keeps, for each
    bucket of lengths, how many got that far and how many ended there (Kaplan and Meier's estimate), old ones fading. What has
    not been seen goes by a rule of thumb that knows no scale: whoever has got far is expected to get as far again.
    """

    # Answers after which an old one counts half.
    HALF_LIFE = 500
    # The rule of thumb's chance to end within a bucket, which makes the expected length twice what has been reached; and below
    # a length that is common for chats there is little reason to end. It counts for two answers.
    CHANCE, EARLY_CHANCE, COMMON, WEIGHT = 0.36, 0.05, 200, 2.0

    def __init__(self) -> None:
        self._reached = [0.0] * BUCKETS
        self._ended = [0.0] * BUCKETS
        self._unit = 1.0
        self._fresh = 0
        self._means = self._expect()

    def reached(self, before: int, bucket: int) -> None:
        """One that goes on has come from bucket `before` (-1: it is new) to `bucket`."""
        for passed in range(before + 1, bucket + 1):
            self._reached[passed] += self._unit

    def ended(self, bucket: int) -> None:
        """One has ended that had reached this bucket."""
        self._ended[bucket] += self._unit
        # New ones count for more instead of old ones for less: the ratios are the same, and it touches one bucket.
        self._unit *= 2 ** (1 / self.HALF_LIFE)
        if self._unit > 1e100:
            self._reached = [count / self._unit for count in self._reached]
            self._ended = [count / self._unit for count in self._ended]
            self._unit = 1.0
        self._fresh += 1
        if self._fresh >= 8:
            self._means = self._expect()

    def learn(self, tokens: int) -> None:
        """A complete answer that was not followed on its way."""
        bucket = bucket_of(tokens)
        self.reached(-1, bucket)
        self.ended(bucket)

    def mean(self, beyond: int = 0, most: int | None = None) -> float:
        """The expected length of an answer that has got to `beyond` tokens, of `most` at most."""
        found = max(self._means[bucket_of(beyond) if beyond else 0], beyond + 1.0)
        return found if most is None else min(float(most), found)

    def _expect(self) -> list[float]:
        """For each bucket the expected length of those that reach it."""
        self._fresh = 0
        means = [0.0] * BUCKETS
        beyond = GROWTH**BUCKETS
        for bucket in reversed(range(BUCKETS)):
            low = GROWTH**bucket
            prior = self.WEIGHT * self._unit
            chance = self.EARLY_CHANCE if low < self.COMMON else self.CHANCE
            ends = (self._ended[bucket] + prior * chance) / (self._reached[bucket] + prior)
            ends = min(ends, 1.0)
            beyond = means[bucket] = ends * low * 1.12 + (1 - ends) * beyond
        return means


class Seen:
    """Quantiles of whole numbers, in buckets that grow by a quarter; old ones fade."""

    HALF_LIFE = 500

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
        self._unit *= 2 ** (1 / self.HALF_LIFE)
        if self._unit > 1e100:
            self._lengths = [count / self._unit for count in self._lengths]
            self._total /= self._unit
            self._unit = 1.0
        self._fresh += 1
        if self._fresh >= 16:
            self._fresh = 0
            self._cached.clear()

    def quantile(self, share: float) -> float:
        """The upper end of the bucket that so many (0 to 1) stay below; 0 before anything was seen."""
        if share not in self._cached:
            self._cached[share] = self._find(share)
        return self._cached[share]

    def _find(self, share: float) -> float:
        if not self._total:
            return 0.0
        rank, seen = share * self._total, 0.0
        for bucket, count in enumerate(self._lengths):
            seen += count
            if count and seen >= rank:
                return GROWTH ** (bucket + 1)
        return GROWTH**BUCKETS
