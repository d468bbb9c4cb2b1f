"""Server-sent events for the hot path: JSON is encoded once, then only each token's text."""

from collections.abc import Callable
from typing import Any

import msgspec

from llmserve.lifecycle.logprobs import unpacked

# The end of each event.
END = b"\n\n"
DONE = b"data: [DONE]" + END

# A marker that no generated text contains: unescaped, it is not valid in JSON.
_MARKER = "\x00text\x00"
_ENCODED_MARKER = msgspec.json.encode(_MARKER)
# A number that no token count reaches.
_NUMBER = 10**17


encode = msgspec.json.Encoder(enc_hook=unpacked).encode


def event(payload: Any) -> bytes:
    """One event with a payload of any type that msgspec encodes."""
    return b"data: " + encode(payload) + END


class TextEvent:
    """Events that differ only in one text and in the numbers after it.

    `make(text, *numbers)` builds the payload. It is called once, for the constant part of the
    events.
    """

    def __init__(self, make: Callable[..., Any], numbers: int = 0) -> None:
        markers = [_NUMBER + index for index in range(numbers)]
        frame = event(make(_MARKER, *markers)).replace(b"%", b"%%").replace(_ENCODED_MARKER, b"%b")
        for marker in markers:
            frame = frame.replace(b"%d" % marker, b"%d")
        self._frame = frame

    def __call__(self, text: str, *numbers: int) -> bytes:
        return self._frame % (encode(text), *numbers)
