"""Around the making of prompts: how long the line before the tokeniser may get, and whose prompts share a cache."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from llmserve.admission import Refusal, Refused


class TokenizerQueue:
    """Bounds the line, and not how many are at work: that is the engine's, whose threads are its own. With 512 requests at once, two
    at a time put 100 ms before each first token on an H200, because every turn of a busy event loop let only two pass."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.length = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises Overloaded."""
        if self.length >= self._most:
            raise Refused.of(Refusal.TOKENIZER_BUSY).error()
        self.length += 1
        try:
            yield
        finally:
            self.length -= 1


def cache_salt(tenant: str) -> str:
    """One tenant's, of 32 hexadecimal digits: vLLM's engine of 2026 fell over long ones, and ones with a slash. It is no secret, because
    nobody outside can choose one."""
    return hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:32]
