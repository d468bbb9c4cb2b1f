"""The server's side of one raw-socket connection.

Each stream has a task that sleeps until its answer is complete. Its tokens bypass the task: the
engine's step notifies the connection. When the step is done, the connection takes the tokens of all
its streams and writes them as one frame. While the client does not read, no tokens are taken and
the streams merge their deltas. The connection of a client that does not read for too long is
closed.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec

from frontends.access.api_keys import Key
from frontends.access.caller import Caller
from frontends.access.trace_context import trace_of_mapping
from frontends.net import deadlines
from frontends.net.receive_budget import REFUSAL, Arrival
from frontends.net.write_watch import WriteWatch
from frontends.rawsocket import frames
from frontends.rawsocket.errors import to_frame
from frontends.rawsocket.frames import Cancel, Credit, End, FrameError, FrameReader, Hello, Open, Ping, Pong, Started, Welcome
from frontends.rawsocket.service import Service
from frontends.rawsocket.streams import Batch, Channel
from llmserve import EngineError, InvalidRequest, LLMServeError, Overloaded
from llmserve.admission.retry_after import RETRY_AFTER

logger = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
# Maximum seconds without an open stream and a frame. llmserve's client sends a Ping frame after a
# third of this time.
IDLE_SECONDS = 300.0
# Maximum number of cancelled streams within FRUITLESS_SECONDS. A client may cancel all of its
# streams (by default at most 1024) and then as many again, but not more.
MAX_FRUITLESS = 2048
FRUITLESS_SECONDS = 10.0


class Connection(asyncio.Protocol):
    """One client's connection. It calls `left` when it is lost."""

    def __init__(self, service: Service, left: Callable[[], None]) -> None:
        self.made = False
        self._service = service
        self._left = left
        self._reader: FrameReader[frames.FromClient] = FrameReader(frames.FromClient, frames.MAX_HELLO)
        self._channels: dict[int, Channel] = {}
        self._queue: list[Channel] = []
        self._greeted = False
        self._key: Key | None = None
        self._paused = False
        self._closed = False
        # The number of streams cancelled since a stream was last read to its end.
        self._fruitless = 0
        self._fruitless_since = 0.0
        # The seconds and the message of the time limit that `_timer` enforces.
        self._expected: tuple[float, str] | None = None

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        self._transport = cast("asyncio.Transport", transport)
        _send_at_once(self._transport.get_extra_info("socket"))
        self._loop = asyncio.get_running_loop()
        self._watch = WriteWatch(self._loop, self._transport)
        self._arrival = Arrival(self._service.budget, self._refuse_for_room)
        self._timer = self._loop.call_later(HELLO_SECONDS, self.refuse, FrameError(f"no hello within {HELLO_SECONDS:g} s"))
        self._service.transports.add(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        progress = False
        try:
            self._reader.feed(data)
            while not self._closed and (message := self._reader.next()) is not None:
                progress = True
                self._receive(message)
        except FrameError as error:
            self.refuse(error)
        if not self._closed and not self._arrival.grow(self._reader.pending):
            self._refuse_for_room()
        self._expect(again=progress)

    def pause_writing(self) -> None:
        self._paused = True
        # Stop reading requests while the client is not reading responses.
        self._transport.pause_reading()
        self._expect()

    def resume_writing(self) -> None:
        self._paused = False
        if not self._closed:
            self._transport.resume_reading()
            self._expect(again=True)
            self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        self._watch.stop()
        self._service.transports.discard(self._transport)
        self._cancel_streams("the client disconnected")
        self._left()

    def _cancel_streams(self, reason: str) -> None:
        for channel in list(self._channels.values()):
            channel.token.cancel(reason)
            channel.done.set()

    def _expect(self, *, again: bool = False) -> None:
        """Set the time limit for the client's next action; `again` restarts it."""
        if not self._greeted or self._closed:
            return
        wanted = None
        if self._reader.pending and not self._paused:
            wanted = deadlines.BODY_SECONDS, "a frame did not arrive within"
        elif not self._channels and not self._paused:
            wanted = IDLE_SECONDS, "no stream is open, and no frame arrived within"
        if wanted != self._expected or again:
            self._timer.cancel()
            self._expected = wanted
            if wanted is not None:
                seconds, words = wanted
                self._timer = self._loop.call_later(deadlines.spread(seconds), self.refuse, FrameError(f"{words} {seconds:g} s"))

    # Messages from the client

    def _receive(self, message: frames.FromClient) -> None:
        if not self._greeted:
            self._greet(message)
            return
        match message:
            case Open():
                self._open(message)
            case Credit() if message.id in self._channels:
                channel = self._channels[message.id]
                # The bound is more than any answer needs.
                channel.credit = min(channel.credit + message.amount, 2**31)
                if channel.stream is not None:
                    self._ready(channel)
            case Cancel() if message.id in self._channels:
                self._count_cancel()
                self._channels[message.id].token.cancel(message.reason[:128])
            case Ping():
                self._write(Pong(message.number))
            case Hello():
                raise FrameError("a second hello")
            case _:
                # A credit or a cancel for a stream that has just ended.
                pass

    def _count_cancel(self) -> None:
        """Limit the number of cancelled streams.

        Opening and cancelling streams in a loop would keep the server busy for nothing, like HTTP/2
        rapid resets (CVE-2023-44487).
        """
        now = self._loop.time()
        if now - self._fruitless_since > FRUITLESS_SECONDS:
            self._fruitless, self._fruitless_since = 0, now
        self._fruitless += 1
        if self._fruitless > MAX_FRUITLESS:
            raise FrameError("too many streams were cancelled before their end")

    def _greet(self, message: frames.FromClient) -> None:
        if not isinstance(message, Hello):
            raise FrameError("the first frame must be a hello")
        if message.version != frames.VERSION:
            raise FrameError(f"this server supports version {frames.VERSION}, not {message.version}")
        access = self._service.access
        self._key = access.find(message.key or "")
        if not access.still(self._key):
            raise FrameError("the API key is missing or invalid")
        self._timer.cancel()
        self._greeted = True
        self._reader.limit = frames.MAX_FRAME
        self._write(Welcome(frames.VERSION, self._service.model, frames.MAX_FRAME, self._service.max_streams))

    def _open(self, message: Open) -> None:
        if message.id in self._channels:
            raise FrameError(f"the stream {message.id} is already open")
        if not self._service.access.still(self._key):
            # Open streams continue, as over HTTP.
            self._write(to_frame(message.id, InvalidRequest("the API key of this connection was revoked or has expired", "key")))
            return
        if len(self._channels) >= self._service.max_streams:
            words = f"this connection has {len(self._channels)} open streams, which is its limit"
            self._write(to_frame(message.id, Overloaded(words, retry_after=RETRY_AFTER["connection_full"], reason="connection_full")))
            return
        channel = self._channels[message.id] = Channel(message.id, message.credit)
        self._service.spawn(self._serve(channel, message))

    # One stream

    async def _serve(self, channel: Channel, message: Open) -> None:
        caller = Caller(self._key.tenant if self._key else None, trace=trace_of_mapping(msgspec.structs.asdict(message.trace)))
        try:
            manager = self._service.manager
            context = manager.info.max_model_len if manager.engine_is_up else None
            request = await self._service.reader.read(message.request, lambda body: body.generation_request(caller), context)
            # The message holds its whole frame, and the stream may live long.
            del message
            async with manager.stream(request, channel.token) as stream:
                self._write(Started(channel.id, stream.request_id, stream.usage.prompt_tokens))
                channel.stream = stream
                stream.notify(partial(self._ready, channel))
                await channel.done.wait()
                stream.raise_if_failed()
        except LLMServeError as error:
            self._fail(channel, error)
        except Exception:
            logger.exception("a stream failed")
            self._fail(channel, EngineError("an internal error"))
        finally:
            self._free(channel)

    def _fail(self, channel: Channel, error: LLMServeError) -> None:
        self._free(channel)
        self._write(to_frame(channel.id, error))

    def _ready(self, channel: Channel) -> None:
        """Note a stream with new tokens. The engine's step calls this for every token."""
        if not channel.queued:
            channel.queued = True
            self._queue.append(channel)
        # One write already carries the tokens of all streams of a connection. Holding it back only
        # helps other connections.
        assert channel.stream is not None
        if not channel.begun or channel.stream.ended:
            self._service.scheduler.soon(self._flush)
        elif len(self._queue) == 1:
            self._service.scheduler.later(self._flush)

    def _flush(self) -> None:
        """Write the streams' new tokens, within the client's credit and while the client reads."""
        if self._paused or self._closed:
            return
        queue, self._queue = self._queue, []
        # The streams' tasks write errors, after this.
        batch = Batch()
        for channel in queue:
            channel.queued = False
            channel.begun = True
            stream = channel.stream
            assert stream is not None
            delta = stream.take() if channel.credit else None
            if delta is not None:
                channel.credit -= 1
                batch.add(channel.id, delta)
            if delta is not None and delta.finish_reason is not None:
                self._fruitless = 0
                batch.ends.append(End(channel.id, delta.finish_reason, delta.stop_reason, stream.usage))
                # Freed here and not in its task, because the frame that frees the id goes out now.
                self._free(channel)
                channel.done.set()
            elif stream.error is not None:
                channel.done.set()
        data = batch.encoded()
        if data:
            self._transport.write(data)

    def _free(self, channel: Channel) -> None:
        """Free the channel's id, unless a new channel already uses it."""
        if self._channels.get(channel.id) is channel:
            del self._channels[channel.id]
            self._expect()

    def refuse(self, error: FrameError) -> None:
        """Send an error and close the connection."""
        self._refuse(frames.Error(0, "FrameError", str(error)))

    def _refuse_for_room(self) -> None:
        self._refuse(to_frame(0, Overloaded(REFUSAL, retry_after=RETRY_AFTER["receiving_too_much"], reason="receiving_too_much")))

    def _refuse(self, error: frames.Error) -> None:
        if not self._closed:
            self._write(error)
            self._end()
            # Nothing of the streams is written any more, but the connection may stay for seconds.
            self._cancel_streams("the connection was refused")
            self._timer = self._loop.call_later(HELLO_SECONDS, self._transport.abort)
            # Closing with unread bytes would reset the connection, and the client could lose the
            # error.
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()

    def _end(self) -> None:
        """Stop reading, and drop the bytes that were read."""
        self._closed = True
        self._timer.cancel()
        self._arrival.end()
        self._reader.clear()

    def _write(self, message: Any) -> None:
        if not self._closed:
            self._transport.write(frames.encode(message))


def _send_at_once(connection: socket.socket) -> None:
    """Disable Nagle's algorithm.

    Otherwise a small frame waits for the acknowledgement of the previous frame, which the client
    may delay for 40 ms. asyncio does this only for sockets that name TCP as their protocol; those
    of `socket.create_server` do not.
    """
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
