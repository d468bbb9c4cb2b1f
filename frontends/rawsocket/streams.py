"""The streams of one raw-socket connection, and the frames that carry their tokens."""

import asyncio
from typing import Any

import attrs
import msgspec

from frontends.rawsocket import frames
from frontends.rawsocket.frames import Deltas, Detail, End
from llmserve import CancellationToken, Delta, TokenStream

# Approximate maximum bytes of a frame of deltas, so that no frame is too large for a client.
FRAME_BYTES = 2**20
# Maximum bytes of a token id in MessagePack, and of a piece without its text and token ids.
ID_BYTES, PIECE_BYTES = 5, 16


@attrs.define(eq=False)
class Channel:
    """One stream of a connection.

    Attributes:
        credit: the number of pieces that the server may send.
        queued: whether the stream waits for the next flush.
        begun: whether the stream has been flushed before.
        done: set when the stream is complete, has failed or was cancelled.
    """

    id: int
    credit: int
    token: CancellationToken = attrs.field(factory=CancellationToken)
    stream: TokenStream | None = None
    queued: bool = False
    begun: bool = False
    done: asyncio.Event = attrs.field(factory=asyncio.Event)


class Batch:
    """The frames of one flush: first the pieces of all streams, then the ends."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self._done: list[Any] = []
        self._pieces: list[frames.Piece] = []
        self._bytes = 0

    def add(self, stream_id: int, delta: Delta) -> None:
        if delta.logprobs is not None or delta.prompt_logprobs is not None:
            self._done.append(Detail(stream_id, msgspec.structs.replace(delta, finish_reason=None, stop_reason=None)))
        elif delta.token_ids or delta.text:
            self._pieces.append((stream_id, delta.text, delta.token_ids))
            self._bytes += PIECE_BYTES + 4 * len(delta.text) + ID_BYTES * len(delta.token_ids)
            if self._bytes > FRAME_BYTES:
                self._done.append(Deltas(self._pieces))
                self._pieces, self._bytes = [], 0

    def encoded(self) -> bytes:
        pieces = [Deltas(self._pieces)] if self._pieces else []
        return frames.encode(*pieces, *self._done, *self.ends)
