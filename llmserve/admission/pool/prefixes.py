"""Names the beginnings of prompts, and remembers which engine has computed which.

An engine keeps what it has computed of a prompt in its prefix cache, block by block. Another prompt
with the same beginning is then answered sooner by the same engine. A beginning has one key, which
is a hash of all its tokens. Beginnings end at fixed places: every 64 tokens up to 4,096, then every
512 up to 32,768, and so on, so that the number of keys stays below 300 for a million tokens.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

# The first beginning has this many tokens. A shorter one is not worth a detour.
STEP = 64
# After so many steps the steps get longer, by `LONGER`.
STEPS, LONGER = 64, 8
# The size of a cache that an engine does not report, in tokens.
UNKNOWN_CACHE = 1 << 20


def _ends() -> Iterator[int]:
    end, step = 0, STEP
    while True:
        while end < STEPS * step:
            end += step
            yield end
        step *= LONGER


class _Ends:
    """The ends of beginnings in tokens, computed as far as they are needed."""

    def __init__(self) -> None:
        self._more = _ends()
        self._known: list[int] = []

    def __getitem__(self, index: int) -> int:
        while len(self._known) <= index:
            self._known.append(next(self._more))
        return self._known[index]


ENDS = _Ends()


def prefix_keys(token_ids: Sequence[int], salt: str = "") -> tuple[int, ...]:
    """Return the keys of a prompt's beginnings, the shortest first.

    Prompts with different salts have no key in common. Python's hash of integers is the same in
    every process.
    """
    key = int.from_bytes(hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=7).digest())
    keys: list[int] = []
    begin, length = 0, len(token_ids)
    while (end := ENDS[len(keys)]) <= length:
        key = hash((key, tuple(token_ids[begin:end])))
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
        """Return the engines that have the beginning of a prompt with these keys, and how many tokens."""
        found: list[tuple[int, int]] = []
        holders = self._holders.get(prefix[0], 0) if prefix else 0
        length = 1
        while holders:
            longer = self._holders.get(prefix[length], 0) & holders if length < len(prefix) else 0
            if longer != holders:
                found.extend((engine, ENDS[length - 1]) for engine in _bits(holders & ~longer))
            holders = longer
            length += 1
        return found

    def remember(self, engine: int, prefix: Sequence[int], rest: int) -> None:
        """Note that an engine computes a prompt with these keys, and `rest` more tokens."""
        self._rests += 1
        self._enter(engine, (self._rests,), rest)
        # The longest beginning comes first, because an engine gives up the end of a prompt first.
        for index in range(len(prefix) - 1, -1, -1):
            self._enter(engine, prefix[index], ENDS[index] - (ENDS[index - 1] if index else 0))
        entries = self._entries[engine]
        while self._tokens[engine] > self.capacity[engine] and entries:
            self._forget(engine, *entries.popitem(last=False))

    def clear(self, engine: int) -> None:
        """Forget everything that an engine had: it starts again."""
        entries = self._entries[engine]
        while entries:
            self._forget(engine, *entries.popitem())

    def _enter(self, engine: int, key: int | tuple[int], tokens: int) -> None:
        entries = self._entries[engine]
        if key in entries:
            entries.move_to_end(key)
            return
        entries[key] = tokens
        self._tokens[engine] += tokens
        if isinstance(key, int):
            self._holders[key] = self._holders.get(key, 0) | 1 << engine

    def _forget(self, engine: int, key: int | tuple[int], tokens: int) -> None:
        self._tokens[engine] -= tokens
        if isinstance(key, int):
            left = self._holders[key] & ~(1 << engine)
            if left:
                self._holders[key] = left
            else:
                del self._holders[key]


def _bits(number: int) -> Iterator[int]:
    """Iterate over the positions of the bits that are set."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
