"""Names the beginnings of prompts, and remembers which engine has computed which.

An engine keeps what it has computed of a prompt in its prefix cache, block by block. Another prompt
with the same beginning is then answered sooner by the same engine. A beginning has one key, which
is a hash of all its tokens. Beginnings end at fixed places: every 128 tokens up to 2,048, then every
256 up to 4,096, and so on. So at most an eighth of a prompt has no key, and a million tokens have
fewer than 100 keys.
"""

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence

# The first beginning has this many tokens. A shorter one is not worth a detour.
STEP = 128
# After this number of steps the steps get longer, by `LONGER`.
STEPS, LONGER = 16, 2
# No prompt has more tokens.
LONGEST = 1 << 30
# The size of a cache that an engine does not report, in tokens.
UNKNOWN_CACHE = 1 << 20


def _ends() -> Iterator[int]:
    end, step = 0, STEP
    while end < LONGEST:
        while end < STEPS * step:
            end += step
            yield end
        step *= LONGER


# The ends of the beginnings in tokens, and how many tokens each has more than the one before.
ENDS = tuple(_ends())
SIZES = tuple(end - before for before, end in itertools.pairwise((0, *ENDS)))


def prefix_keys(token_ids: Sequence[int], salt: str = "") -> tuple[int, ...]:
    """Return the keys of a prompt's beginnings, the shortest first.

    Prompts with different salts have no key in common. Python's hash of integers is the same in
    every process.
    """
    key = int.from_bytes(hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=7).digest())
    keys: list[int] = []
    begin, length = 0, len(token_ids)
    for end in ENDS:
        if end > length:
            break
        key = hash((key, *token_ids[begin:end]))
        keys.append(key)
        begin = end
    return tuple(keys)


class PrefixIndex:
    """The beginnings that each of `engines` engines has computed, as far as its cache holds them.

    An engine forgets the beginnings that it used longest ago, as soon as its cache is full.
    """

    def __init__(self, engines: int) -> None:
        # For each key, the engines that have it, as bits.
        self._holders: dict[int, int] = {}
        # For each engine, its entries in the order of their last use, with their tokens. A tuple is
        # the rest of one prompt and its answer, which no other prompt shares.
        self._entries: list[OrderedDict[int | tuple[int], int]] = [OrderedDict() for _ in range(engines)]
        self._tokens = [0] * engines
        self.capacity = [UNKNOWN_CACHE] * engines
        self._rests = 0

    def cached(self, prefix: Sequence[int]) -> list[tuple[int, int]]:
        """Return (engines, tokens) pairs: the engines, as bits, that have so much of a prompt, and no more.

        The prompt is one with these keys.
        """
        # An engine that has a beginning has the shorter ones too.
        holders = list(map(self._holders.get, prefix))
        if not holders or holders[0] is None:
            return []
        if holders[0] == holders[-1]:
            return [(holders[0], ENDS[len(holders) - 1])]
        return [
            (shorter & ~(longer or 0), ENDS[index])
            for index, (shorter, longer) in enumerate(itertools.pairwise((*holders, 0)))
            if shorter and shorter != longer
        ]

    def remember(self, engine: int, prefix: Sequence[int], tokens: int) -> None:
        """Note that an engine computes a prompt with these keys; `tokens` are those of it and its answer."""
        entries, bit, holders = self._entries[engine], 1 << engine, self._holders
        self._rests += 1
        # What no other prompt shares.
        entries[(self._rests,)] = added = max(0, tokens - ENDS[len(prefix) - 1] if prefix else tokens)
        # The longest beginning comes first, because an engine gives up the end of a prompt first.
        for key, size in zip(reversed(prefix), reversed(SIZES[: len(prefix)]), strict=True):
            if key in entries:
                entries.move_to_end(key)
            else:
                entries[key] = size
                added += size
                holders[key] = holders.get(key, 0) | bit
        self._tokens[engine] += added
        while self._tokens[engine] > self.capacity[engine] and entries:
            self._forget(engine, *entries.popitem(last=False))

    def clear(self, engine: int) -> None:
        """Forget everything that an engine had: it starts again."""
        entries = self._entries[engine]
        while entries:
            self._forget(engine, *entries.popitem())

    def _forget(self, engine: int, key: int | tuple[int], tokens: int) -> None:
        self._tokens[engine] -= tokens
        if isinstance(key, int):
            left = self._holders[key] & ~(1 << engine)
            if left:
                self._holders[key] = left
            else:
                del self._holders[key]


def bits(engines: int) -> Iterator[int]:
    """Iterate over the engines of a set that is written as bits."""
    while engines:
        low = engines & -engines
        yield low.bit_length() - 1
        engines ^= low
