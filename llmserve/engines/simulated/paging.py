"""Block accounting of a paged KV cache: which blocks are in use, and which hold a known prefix."""

from collections.abc import Sequence

Prefix = tuple[int, ...]


class BlockPool:
    """A pool of `num_blocks` blocks of `block_size` tokens.

    A freed block keeps its content until it is taken again; the oldest is taken first.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._users = [0] * num_blocks
        self._free: dict[int, None] = dict.fromkeys(range(num_blocks))
        self._content: dict[int, int] = {}
        self._cached: dict[int, int] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1; a freed block that holds a prefix counts as free."""
        return 1 - len(self._free) / self.num_blocks

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def take_prefix(self, tokens: Sequence[int]) -> list[int]:
        """Take the cached blocks with the longest prefix, leaving at least one token to compute."""
        taken: list[int] = []
        if not self.prefix_caching:
            return taken
        for key in self._keys(tokens[:-1]):
            block = self._cached.get(key)
            if block is None:
                break
            self._users[block] += 1
            self._free.pop(block, None)
            taken.append(block)
        return taken

    def take(self, count: int) -> list[int] | None:
        """Take `count` fresh blocks, or none at all."""
        if count > len(self._free):
            return None
        taken = []
        for _ in range(count):
            block = next(iter(self._free))
            del self._free[block]
            self._forget(block)
            self._users[block] = 1
            taken.append(block)
        return taken

    def remember(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Record the content of a computed sequence's full blocks, so that others can share it."""
        if not self.prefix_caching:
            return
        for key, block in zip(self._keys(tokens), blocks, strict=False):
            if key not in self._cached:
                self._cached[key] = block
                self._content[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        # Backwards, because the end of a sequence is least likely to be shared and should be reused
        # first.
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free[block] = None

    def _forget(self, block: int) -> None:
        key = self._content.pop(block, None)
        if key is not None:
            del self._cached[key]

    def _keys(self, tokens: Sequence[int]) -> list[int]:
        keys, key = [], 0
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            key = hash((key, *tokens[start : start + self.block_size]))
            keys.append(key)
        return keys
