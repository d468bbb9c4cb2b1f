"""Decodes bodies into structs.

Limits on the bytes of a body and of its fields bound the time of decoding
(`frontends/openai/sizes.py`).
"""

import json
import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, Generic, TypeVar

import msgspec

from frontends.net.turns import WorkQueue
from frontends.openai.sizes import Sizes
from frontends.openai.unsupported import normalised
from llmserve import InvalidRequest

# Maximum bytes of a body that is decoded immediately. The slowest such body, a schema, takes 6 ms
# with all checks.
SMALL = 2**14

Wire = TypeVar("Wire", bound=msgspec.Struct)
Made = TypeVar("Made")

# msgspec's messages end with the path of the invalid value, unless it is at the top level.
_PATH = re.compile(r"(?:at|in) `\$\.(\w+)")
_FIELD = re.compile(r"field `(\w+)`")
# Some editors and PowerShell write this byte order mark before JSON.
_BOM = b"\xef\xbb\xbf"


class BodyReader(Generic[Wire]):
    """Reads bodies of one type, with the codec `msgspec.json` or `msgspec.msgpack`."""

    def __init__(self, kind: type[Wire], turns: WorkQueue, codec: ModuleType = msgspec.json) -> None:
        self._decoder = codec.Decoder(kind)
        self._sizes = Sizes(kind, codec)
        self._turns = turns

    async def read(self, body: bytes | msgspec.Raw, make: Callable[[Wire], Made], context: int | None = None) -> Made:
        """Return what `make` builds from the decoded body; the reader keeps nothing of the body.

        `context` is the model's context length in tokens, if it is known. Raises InvalidRequest,
        and what `make` raises.
        """
        if len(body) <= SMALL:
            return make(decode(self._decoder, body))
        await self._turns.run(self._measure, body, context)
        return await self._turns.run(lambda: make(decode(self._decoder, body)))

    def _measure(self, body: bytes | msgspec.Raw, context: int | None) -> None:
        self._sizes.check(decode(self._sizes.scanner, body), len(body), context)


def decode(decoder: "msgspec.json.Decoder[Wire] | msgspec.msgpack.Decoder[Wire]", body: bytes | msgspec.Raw) -> Wire:
    """Decode a request's body.

    Raises InvalidRequest, which names the invalid field if there is one.
    """
    if bytes(memoryview(body)[:3]) == _BOM:
        body = bytes(memoryview(body)[3:])
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        words = str(error)
        try:
            other = normalised(decoder.type, body) if isinstance(decoder, msgspec.json.Decoder) else None
        except msgspec.ValidationError as unknown:
            # Report the unknown field, and not an earlier null or 16.0, which are valid by
            # themselves.
            words, other = str(unknown), None
        if other is not None:
            return decode(decoder, other)
        found = _PATH.search(words) or _FIELD.search(words)
        raise InvalidRequest(words[:300], found[1] if found else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        param = _not_finite(bytes(body)) if len(body) <= SMALL else None
        if param is not None:
            raise InvalidRequest(f"{param} must be a finite number", param) from None
        raise InvalidRequest(f"the body cannot be decoded: {str(error)[:200]}") from None


def _not_finite(body: bytes) -> str | None:
    """Return the name of a field with NaN or an infinity.

    Such a value is not JSON, but Python's encoder writes it.
    """
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(fields, dict):
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                return str(name)[:64]
    return None
