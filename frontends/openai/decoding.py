"""Bodies into structs. The time that this takes is bounded by the bytes of the body and of its fields (`frontends/openai/sizes.py`)."""

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

# A body of at most this size is decoded at once. The worst of them, a schema, takes 6 ms with all its checks.
SMALL = 2**14

Wire = TypeVar("Wire", bound=msgspec.Struct)
Made = TypeVar("Made")

# msgspec's messages end with the path of what is wrong, unless it is at the top.
_PATH = re.compile(r"(?:at|in) `\$\.(\w+)")
_FIELD = re.compile(r"field `(\w+)`")
# Some editors and PowerShell write it before JSON.
_BOM = b"\xef\xbb\xbf"


class BodyReader(Generic[Wire]):
    """Bodies of one kind, in JSON or MessagePack: `codec` is `msgspec.json` or `msgspec.msgpack`."""

    def __init__(self, kind: type[Wire], turns: WorkQueue, codec: ModuleType = msgspec.json) -> None:
        self._decoder = codec.Decoder(kind)
        self._sizes = Sizes(kind, codec)
        self._turns = turns

    async def read(self, body: bytes | msgspec.Raw, make: Callable[[Wire], Made], context: int | None = None) -> Made:
        """What `make` makes of the decoded body. `context` is the model's, in tokens, where it is known. Nothing of the body is kept
        here. Raises InvalidRequest, and what `make` raises."""
        if len(body) <= SMALL:
            return make(decode(self._decoder, body))
        await self._turns.run(self._measure, body, context)
        return await self._turns.run(lambda: make(decode(self._decoder, body)))

    def _measure(self, body: bytes | msgspec.Raw, context: int | None) -> None:
        self._sizes.check(decode(self._sizes.scanner, body), len(body), context)


def decode(decoder: "msgspec.json.Decoder[Wire] | msgspec.msgpack.Decoder[Wire]", body: bytes | msgspec.Raw) -> Wire:
    """A request's body. Raises InvalidRequest, naming the field where there is one to blame."""
    if bytes(memoryview(body)[:3]) == _BOM:
        body = bytes(memoryview(body)[3:])
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        words = str(error)
        try:
            other = normalised(decoder.type, body) if isinstance(decoder, msgspec.json.Decoder) else None
        except msgspec.ValidationError as unknown:
            # Blame the unknown field, and not a null or a 16.0 before it, which alone is accepted.
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
    """The field that holds NaN or an infinity: no JSON, but Python's own encoder writes it, so say which one it was."""
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(fields, dict):
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                return str(name)[:64]
    return None
