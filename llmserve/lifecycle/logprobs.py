"""Packed logprobs of an answer.

An answer may have 262,144 entries, which take 350 bytes each as objects. The objects of several
answers lie side by side in memory, and the interpreter kept 400 MiB after eight such answers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import msgspec

from llmserve.request import TokenLogprob

# Number of tokens that are packed together. The sequences of one request fill their blocks in the
# same step: 48 of them with 20 alternatives per token take 2 ms of it. Blocks of 128 take 19 ms.
BLOCK = 16

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[TokenLogprob]).decode


class PackedLogprobs(Sequence[TokenLogprob]):
    """A sequence of `TokenLogprob` that makes its items when they are read.

    It equals any sequence with the same items.
    """

    __slots__ = ("_blocks", "_last")

    def __init__(self, entries: Iterable[TokenLogprob] = ()) -> None:
        self._blocks: list[bytes] = []
        # The last entries, fewer than a block.
        self._last: list[TokenLogprob] = []
        self.extend(entries)

    def extend(self, entries: Iterable[TokenLogprob]) -> None:
        for entry in entries:
            self._last.append(entry)
            if len(self._last) == BLOCK:
                self._blocks.append(_encode(self._last))
                self._last.clear()

    def __len__(self) -> int:
        return len(self._blocks) * BLOCK + len(self._last)

    @overload
    def __getitem__(self, index: int) -> TokenLogprob: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenLogprob, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenLogprob | tuple[TokenLogprob, ...]:
        """Return one item, or a tuple for a slice."""
        places = range(len(self))[index]
        if isinstance(places, int):
            return self._block(places // BLOCK)[places % BLOCK]
        if not places:
            return ()
        first, last = min(places[0], places[-1]) // BLOCK, max(places[0], places[-1]) // BLOCK
        entries = [entry for number in range(first, last + 1) for entry in self._block(number)]
        return tuple(entries[place - first * BLOCK] for place in places)

    def __iter__(self) -> Iterator[TokenLogprob]:
        for number in range(len(self._blocks) + 1):
            yield from self._block(number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # Python marks unhashable classes so

    def __repr__(self) -> str:
        return f"<PackedLogprobs of {len(self):,} tokens>"

    def _block(self, number: int) -> Sequence[TokenLogprob]:
        return _decode(self._blocks[number]) if number < len(self._blocks) else self._last


def unpacked(value: object) -> tuple[TokenLogprob, ...]:
    """Unpack logprobs, as msgspec's `enc_hook`. Raises NotImplementedError for other types."""
    if isinstance(value, PackedLogprobs):
        return tuple(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be encoded")
