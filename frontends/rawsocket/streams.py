"""The streams of one raw-socket connection, and the frames that carry their tokens."""

import asyncio
from typing import Any

import attrs
import msgspec

from frontends.rawsocket import frames
from frontends.rawsocket.frames import Deltas, Detail, End
from llmserve import CancellationToken, Delta, TokenStream

# A frame of merged deltas is closed at about this size, so that none is too large for a client.
FRAME_BYTES = 2**20
# What an id takes in MessagePack at most, and a piece around it.
ID_BYTES, PIECE_BYTES = 5, 16


@attrs.define(eq=False)
class Channel:
    """One stream of a connection. `queued`: it waits for the next flush; `begun`: it has been flushed before; `done` is set when all of it
    has been written."""

    id: int
    credit: int
    token: CancellationToken = attrs.field(factory=CancellationToken)
    stream: TokenStream | None = None
    queued: bool = False
    begun: bool = False
    done: asyncio.Event = attrs.field(factory=asyncio.Event)


class Batch:
    """The frames of one flush: pieces together, then what ends."""

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
