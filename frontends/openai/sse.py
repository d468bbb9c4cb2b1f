"""Server-sent events, made for the hot path: a chunk's JSON is encoded once, and for each token only its text again."""

from collections.abc import Callable
from typing import Any

import msgspec

from llmserve.lifecycle.logprobs import unpacked

DONE = b"data: [DONE]\n\n"

# No text that a model makes contains it: it is not even valid in JSON unescaped.
_MARKER = "\x00text\x00"
_ENCODED_MARKER = msgspec.json.encode(_MARKER)
# Nor does any answer count so many tokens.
_NUMBER = 10**17


encode = msgspec.json.Encoder(enc_hook=unpacked).encode


def event(payload: Any) -> bytes:
    """One event with a payload of any type that msgspec encodes."""
    return b"data: " + encode(payload) + b"\n\n"


class TextEvent:
    """Events that differ in one text, and in the numbers that follow it. `make(text, *numbers)` builds the payload; it is called once,
    for the frame around them."""

    def __init__(self, make: Callable[..., Any], numbers: int = 0) -> None:
        markers = [_NUMBER + index for index in range(numbers)]
        frame = event(make(_MARKER, *markers)).replace(b"%", b"%%").replace(_ENCODED_MARKER, b"%b")
        for marker in markers:
            frame = frame.replace(b"%d" % marker, b"%d")
        self._frame = frame

    def __call__(self, text: str, *numbers: int) -> bytes:
        return self._frame % (encode(text), *numbers)
