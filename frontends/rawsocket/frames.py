"""The raw socket's wire: messages, and a codec that does no I/O. docs/protocol.md describes it for other languages.

A frame is the length of its body as four bytes, the highest first, then the body: one message in MessagePack, an array whose first
element says which message it is.
"""

from typing import Annotated, Any, Generic, TypeVar

import msgspec

from frontends.net.receive_budget import LARGEST
from llmserve import Delta, Usage
from llmserve.lifecycle.logprobs import unpacked

VERSION = 1
# Before it has said who it is, a client may send this much. Afterwards as much as HTTP takes for a body.
MAX_HELLO = 4096
MAX_FRAME = LARGEST
# What a client takes from its server: the deltas of one answer may have been merged into one.
MAX_ANSWER = 64 * 2**20
LENGTH = 4

Id = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# A stream's id, the text and the tokens that came.
Piece = tuple[int, str, tuple[int, ...]]


class FrameError(Exception):
    """The other side does not speak this protocol; the connection ends."""


# From the client


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame. `key` is the API key, where the server asks for one."""

    version: int
    key: str | None = None


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """W3C's headers. Anything else beside them is skipped, and not decoded."""

    traceparent: str = ""
    tracestate: str = ""


class Open(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Begin a stream under an id that is free; `request` is the body of POST /generate. `credit` is how many pieces may come."""

    id: Id
    credit: Amount
    request: msgspec.Raw
    trace: Trace = Trace()


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """So many pieces more may come."""

    id: Id
    amount: Amount


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The rest is not wanted; the stream still gets its Error or End."""

    id: Id
    reason: str = "cancelled by the client"


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=4):
    number: Number


# From the server


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """The answer to Hello."""

    version: int
    model: str
    max_frame: int
    max_streams: int


class Started(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Admitted: tokens will come."""

    id: int
    request_id: str
    prompt_tokens: int


class Deltas(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """What one step of the engine made, for all streams of this connection that had something."""

    pieces: list[Piece]


class Detail(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """A piece with logprobs."""

    id: int
    delta: Delta


class End(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The answer is complete; the id is free again."""

    id: int
    finish_reason: str
    stop_reason: str | int | None
    usage: Usage


class Error(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """The stream ended with an error, and its id is free again; with the id 0 the connection did. `kind` names a class of llmserve's."""

    id: int
    kind: str
    message: str
    details: dict[str, str | int | float | None] = {}


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=22):
    number: int


FromClient = Hello | Open | Credit | Cancel | Ping
FromServer = Welcome | Started | Deltas | Detail | End | Error | Pong

_encoder = msgspec.msgpack.Encoder(enc_hook=unpacked)
Message = TypeVar("Message")


def encode(*messages: Any) -> bytes:
    """Frames, one after the other."""
    parts: list[bytes] = []
    for message in messages:
        body = _encoder.encode(message)
        parts += (len(body).to_bytes(LENGTH, "big"), body)
    return b"".join(parts)


def raw(body: Any) -> msgspec.Raw:
    """A part of a message, encoded by itself."""
    return msgspec.Raw(_encoder.encode(body))


class FrameReader(Generic[Message]):
    """Bytes in, in whatever chunks they come; messages out.

    `limit` is the longest body in bytes that is taken; it may be changed between two messages.
    """

    def __init__(self, kind: Any, limit: int) -> None:
        self.limit = limit
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of the frame that has not arrived completely, once `next` has returned None."""
        return len(self._buffer)

    def clear(self) -> None:
        self._buffer.clear()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Message | None:
        """The next message that is complete, None if none is. Raises FrameError."""
        buffer = self._buffer
        if len(buffer) < LENGTH:
            return None
        length = int.from_bytes(buffer[:LENGTH], "big")
        if length > self.limit:
            raise FrameError(f"a frame of {length} bytes; at most {self.limit} are allowed here")
        end = LENGTH + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            body = bytes(view[LENGTH:end])
        del buffer[:end]
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame that is no message: {str(error)[:200]}") from None
