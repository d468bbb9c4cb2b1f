"""The client's side of one stream."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from frontends.rawsocket.frames import Credit, End, Started
from llmserve import Delta, GenerationRequest, LLMServeError, Timeline, TokenStream
from llmserve.lifecycle.delta_buffer import DeltaBuffer

# Maximum number of unread pieces per stream. The client grants new credit when it has read half of
# them.
WINDOW = 256


class RemoteStream(TokenStream):
    """A `TokenStream` that a connection feeds. Its timeline has the times at the client.

    Args:
        number: the stream's id on the connection.
        request: what the stream answers.
        send: sends a message to the server.
        leave: called with the stream when it has ended with an error.
    """

    def __init__(
        self, number: int, request: GenerationRequest, send: Callable[[Any], None], leave: Callable[["RemoteStream"], None]
    ) -> None:
        self.id = number
        self.started = False
        self.change = asyncio.Event()
        self._unread = 0
        self._send = send
        self._leave = leave
        timeline = Timeline(request_id=request.request_id, tenant=request.tenant, arrived=time.monotonic())
        super().__init__(timeline, time.monotonic, _Silent(), self._over)

    def _over(self) -> None:
        self.change.set()
        if self.error is not None:
            self._leave(self)

    async def __anext__(self) -> Delta:
        delta = await super().__anext__()
        if self._unread >= WINDOW // 2:
            if not self.ended:
                self._send(Credit(self.id, self._unread))
            self._unread = 0
        return delta

    async def _rest(self) -> Delta | None:
        # Reading grants the credit that the server needs to continue.
        read: DeltaBuffer | None = None
        try:
            async for delta in self:
                if read is None:
                    read = DeltaBuffer(delta)
                else:
                    read.add(delta)
        except LLMServeError:
            if self.error is None:
                raise
        return None if read is None else read.whole()

    def start(self, message: Started) -> None:
        self.timeline.request_id, self.timeline.prompt_tokens = message.request_id, message.prompt_tokens
        self.timeline.admitted = time.monotonic()
        self.started = True
        self.change.set()

    def end(self, message: End) -> None:
        self.timeline.cached_tokens = message.usage.cached_tokens
        self.put(Delta("", (), message.finish_reason, message.stop_reason))

    def receive(self, delta: Delta) -> None:
        """Take one piece. It has used one credit, which is granted again when the piece is read."""
        self._unread += 1
        self.put(delta)


class _Silent:
    """An observer that does nothing: the server has the metrics."""

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        pass

    def finished(self, timeline: Timeline) -> None:
        pass
