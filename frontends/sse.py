"""Server-sent events, made for the hot path: a chunk's JSON is encoded once, and for each token only its text again."""

from collections.abc import Callable
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

# No text that a model makes contains it: it is not even valid in JSON unescaped.
_MARKER = "\x00text\x00"
_ENCODED_MARKER = msgspec.json.encode(_MARKER)
# Nor does any answer count so many tokens.
_NUMBER = 10**17


def event(payload: Any) -> bytes:
    """One event with a payload of any type that msgspec encodes."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


class TextEvent:
    """Events that differ in one text, and in the numbers that follow it. `make(text, *numbers)` builds the payload; it is called once,
    for the frame around them."""

    def __init__(self, make: Callable[..., Any], numbers: int = 0) -> None:
        markers = [_NUMBER + index for index in range(numbers)]
        self._head, rest = event(make(_MARKER, *markers)).split(_ENCODED_MARKER)
        self._between = []
        for marker in markers:
            part, rest = rest.split(b"%d" % marker)
            self._between.append(part)
        self._tail = rest

    def __call__(self, text: str, *numbers: int) -> bytes:
        frame = self._head + msgspec.json.encode(text)
        for part, number in zip(self._between, numbers, strict=True):
            frame += part + b"%d" % number
        return frame + self._tail
