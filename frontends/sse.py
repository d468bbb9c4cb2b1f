"""Server-sent events, made for the hot path: a chunk's JSON is encoded once, and for each token only its text again."""

from collections.abc import Callable
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

# No text that a model makes contains it: it is not even valid in JSON unescaped.
_MARKER = "\x00text\x00"
_ENCODED_MARKER = msgspec.json.encode(_MARKER)


def event(payload: Any) -> bytes:
    """One event with a payload of any type that msgspec encodes."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


class TextEvent:
    """Events that differ in one text alone. `make(text)` builds the payload; it is called once, for the frame around it."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._head, self._tail = event(make(_MARKER)).split(_ENCODED_MARKER)

    def __call__(self, text: str) -> bytes:
        return self._head + msgspec.json.encode(text) + self._tail
