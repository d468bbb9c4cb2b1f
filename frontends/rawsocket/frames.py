"""The raw-socket protocol: messages, and a codec without I/O.

A frame is the length of its body as four bytes in big-endian order, then the body. The body is one
message in MessagePack, an array whose first element is the message's type. docs/protocol.md
describes the protocol for other languages.
"""

from typing import Annotated, Any, Generic, TypeVar

import msgspec

from frontends.net.receive_budget import LARGEST
from llmserve import Delta, Usage
from llmserve.lifecycle.logprobs import unpacked

VERSION = 1
# Maximum bytes of a frame before the client is authenticated, and afterwards, as for an HTTP body.
MAX_HELLO = 4096
MAX_FRAME = LARGEST
# Maximum bytes of a frame that a client accepts: all deltas of an answer may be merged into one.
MAX_ANSWER = 64 * 2**20
LENGTH = 4

Id = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# A stream's id, and its new text and token ids.
Piece = tuple[int, str, tuple[int, ...]]


class FrameError(Exception):
    """A violation of the protocol by the other side, which ends the connection."""


# From the client


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame. `key` is the API key, if the server requires one."""

    version: int
    key: str | None = None


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """The W3C trace headers. Other fields are skipped without being decoded."""

    traceparent: str = ""
    tracestate: str = ""


class Open(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Open a stream.

    Attributes:
        credit: the number of pieces that the server may send.
        request: the body of POST /generate.
    """

    id: Id
    credit: Amount
    request: msgspec.Raw
    trace: Trace = Trace()


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Allow the server to send `amount` more pieces of a stream."""

    id: Id
    amount: Amount


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Cancel a stream. The server still sends its Error or End."""

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
    """The request was admitted."""

    id: int
    request_id: str
    prompt_tokens: int


class Deltas(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """The new pieces of all streams of this connection after an engine step."""

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
    """A stream ended with an error, and its id is free again; for the id 0, the connection ended.

    `kind` is the name of an error class of llmserve.
    """

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
    """Encode messages as consecutive frames."""
    parts: list[bytes] = []
    for message in messages:
        body = _encoder.encode(message)
        parts += (len(body).to_bytes(LENGTH, "big"), body)
    return b"".join(parts)


def raw(body: Any) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(body))


class FrameReader(Generic[Message]):
    """Decodes messages from bytes in chunks of any size.

    `limit` is the maximum size of a body in bytes; it may be changed between two messages.
    """

    def __init__(self, kind: Any, limit: int) -> None:
        self.limit = limit
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """The size in bytes of the incomplete frame, after `next` has returned None."""
        return len(self._buffer)

    def clear(self) -> None:
        self._buffer.clear()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Message | None:
        """Return the next complete message, or None if there is none. Raises FrameError."""
        buffer = self._buffer
        if len(buffer) < LENGTH:
            return None
        length = int.from_bytes(buffer[:LENGTH], "big")
        if length > self.limit:
            raise FrameError(f"the frame has {length} bytes; at most {self.limit} are allowed")
        end = LENGTH + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            body = bytes(view[LENGTH:end])
        del buffer[:end]
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"the frame is not a valid message: {str(error)[:200]}") from None
