"""A response of server-sent events that is written outside its handler's task.

Each engine step notes which streams have tokens. Their events go straight to the transport when the
step is over, while the handler's task sleeps. The headers go out with the first event, or alone if
there is no event within `HEADERS_SECONDS`.

While the client does not read, no tokens are taken and the streams merge their deltas. So a slow
client costs no more memory than its answer. The connection is closed if its client takes nothing
for too long (`frontends.net.write_watch`).
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.http_writer import StreamWriter

from frontends.net.flush import FlushScheduler
from frontends.openai.sse import END
from llmserve import Delta, TokenStream

# Long enough for the first token of a server without overload, and short enough for a client that
# waits for the headers.
HEADERS_SECONDS = 0.5
# nginx buffers a response, and so sends events in bursts, unless X-Accel-Buffering forbids it.
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# Proxies close a silent response: nginx and AWS load balancers after 60 s.
KEEPALIVE_SECONDS = 15.0
# Minimum seconds between two looks at a client that does not read.
MIN_SECONDS = 0.1
# A comment, which clients of server-sent events skip.
COMMENT = b": keep-alive" + END
RECORD = web.ResponseKey("record", bytes)

# Writes a choice's delta as events; empty where there is nothing to show yet.
Chunk = Callable[[int, Delta], bytes]


class _LateHeaders(web.StreamResponse):
    """A response whose headers aiohttp sends with the first bytes of the body."""

    _send_headers_immediately = False


class EventStream:
    """The event stream of one request: call `begin`, `pour`, `end`; or without tokens `begin` and `send`.

    Before the first event an error becomes a status, after it an event.
    """

    def __init__(self, request: web.Request, scheduler: FlushScheduler, keepalive: float = 0.0) -> None:
        self.response = _LateHeaders(headers=HEADERS)
        self._request = request
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
        self._protocol, self._transport = request.protocol, request.transport
        self._scheduler = scheduler
        # Used at every step, so the method is bound once.
        self._flush = self._write_out
        # For HTTP/1.0 the end of the connection ends the response.
        self._chunked = request.version >= HttpVersion11
        self._writer: StreamWriter | None = None
        # Headers and first event have been written.
        self.begun = False
        self._timer: asyncio.TimerHandle | None = None
        self._ready: dict[int, None] = {}
        self._record: list[bytes] | None = None
        # Bytes by which the record may still grow.
        self._recordable = 0
        self._closed = False
        # Whether the bytes that were sent last end within an event.
        self._within = False
        self._keepalive = keepalive
        self._loop = asyncio.get_running_loop()
        # The time of the last write, or of the request.
        self._written = self._loop.time()
        self._silence = self._loop.call_later(keepalive, self._keep_alive) if keepalive else None

    def record(self, max_bytes: int) -> None:
        """Record the response for `RECORD`, which is set when the response is complete.

        A response of more than `max_bytes` is not recorded.
        """
        self._record, self._recordable = [], max_bytes

    async def begin(self) -> None:
        """Prepare the status and the headers, which are sent with the first event."""
        if self._writer is None:
            await self._prepare()
            self._timer = self._loop.call_later(HEADERS_SECONDS, self._send_headers)

    async def _prepare(self) -> None:
        if self._chunked:
            self.response.enable_chunked_encoding()
        writer = await self.response.prepare(self._request)
        assert isinstance(writer, StreamWriter)
        self._writer = writer

    def _send_headers(self) -> None:
        if not self.begun and self._writer is not None and not self._gone():
            self.begun = True
            self._writer.send_headers()

    def close(self) -> None:
        """End all writing. If nothing was written, the handler may send another response."""
        self._closed = True
        if self._silence is not None:
            self._silence.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._writer is not None and not self.begun:
            # prepare() has marked the connection's writer as chunked. The next response sets all
            # other values itself.
            self._writer.chunked = False

    async def pour(self, streams: Sequence[TokenStream], chunk: Chunk) -> None:
        """Write the streams' deltas until all streams have ended.

        Raises the first error of any stream, and ConnectionResetError when the client has gone or
        does not read.
        """
        self._streams, self._chunk, self._left = streams, chunk, len(streams)
        self._turn: asyncio.Future[None] = self._loop.create_future()
        # A stream's first tokens, and its end, are not held back.
        self._first = set(range(len(streams)))
        for index, stream in enumerate(streams):
            stream.notify(partial(self._note, index))
        self._flush()
        await self._turn
        while self._left:
            await self._drain()
            self._turn = self._loop.create_future()
            self._flush()
            await self._turn

    async def send(self, events: bytes) -> None:
        """Send events, and wait until the client has taken enough. Raises ConnectionResetError if it has gone.

        A large event may come in several pieces.
        """
        if events:
            self._within = not events.endswith(END)
        self._write(events)
        await self._drain()

    async def end(self, last: bytes = b"") -> None:
        """Send the last events, after all tokens. A stream without any event has its headers alone."""
        if not last:
            self._send_headers()
        await self.send(last)
        if self._record is not None:
            self.response[RECORD] = b"".join(self._record)

    async def fail(self, last: bytes = b"") -> None:
        """End a failed stream, which is not recorded, with the last event if that has not been sent."""
        self._record = None
        await self.end(last)

    def _note(self, index: int) -> None:
        """Note a stream with new tokens. The engine's step calls this for every token."""
        ready = self._ready
        if index in self._first or self._streams[index].ended:
            self._scheduler.soon(self._flush)
        elif not ready:
            self._scheduler.later(self._flush)
        ready[index] = None

    def _write_out(self) -> None:
        """Write all new tokens as one chunk.

        Wakes the handler's task if the client does not read, at an error, and at the end.
        """
        if self._turn.done():
            return
        if self._protocol.writing_paused and not self._gone():
            self._turn.set_result(None)
            return
        ready, self._ready = self._ready, {}
        self._first.difference_update(ready)
        try:
            self._write(b"".join(map(self._take, ready)))
            for index in ready:
                self._streams[index].raise_if_failed()
        except Exception as error:
            self._turn.set_exception(error)
            return
        if not self._left:
            self._turn.set_result(None)

    def _take(self, index: int) -> bytes:
        delta = self._streams[index].take()
        if delta is None:
            return b""
        if delta.finish_reason is not None:
            self._left -= 1
        return self._chunk(index, delta)

    def _write(self, data: bytes) -> None:
        """Write bytes to the client.

        The first write goes through aiohttp's writer, which adds the headers. Later writes bypass
        it: its framing, counting and awaiting cost several times the write itself.
        """
        if not data:
            return
        if self._gone():
            raise ConnectionResetError("the client has gone")
        self._written = self._loop.time()
        if self._record is not None:
            self._keep(data, self._record)
        if not self.begun:
            self.begun = True
            assert self._writer is not None
            _finish(self._writer.write(data, drain=False))
            return
        self._transport.write(_chunk(data) if self._chunked else data)

    def _keep_alive(self) -> None:
        """Write a comment if the response has been silent for the interval.

        A client that does not read gets none, because it would only fill the buffer. Within an event
        the comment would become a part of it.
        """
        silent = self._loop.time() - self._written
        if silent < self._keepalive or self._protocol.writing_paused or self._within:
            self._silence = self._loop.call_later(max(self._keepalive - silent, MIN_SECONDS), self._keep_alive)
            return
        if self._gone():
            return
        self._silence = self._loop.call_later(self._keepalive, self._keep_alive)
        if self._writer is None:
            # The request is still in the queue. From here on an error is an event.
            self._starting = self._loop.create_task(self._begin_silent())
        else:
            self._comment()

    async def _begin_silent(self) -> None:
        """Send the headers and a comment before there is an event.

        aiohttp's prepare() never waits, so the handler sees it complete or not begun.
        """
        if self._closed or self._writer is not None:
            return
        with suppress(ConnectionError):
            await self._prepare()
            self._comment()

    def _comment(self) -> None:
        """Write a comment, which is not recorded: a replayed response has no silence."""
        self._send_headers()
        self._written = self._loop.time()
        if not self._gone():
            self._transport.write(_chunk(COMMENT) if self._chunked else COMMENT)

    def _keep(self, data: bytes, record: list[bytes]) -> None:
        self._recordable -= len(data)
        if self._recordable < 0:
            # The response is too large to keep, so the record is freed now and not at the end.
            self._record = None
        else:
            record.append(data)

    def _gone(self) -> bool:
        """Return whether the client has gone.

        A connection lost while paused still counts as paused.
        """
        return self._transport.is_closing()

    async def _drain(self) -> None:
        """Wait until the client has taken enough. Raises ConnectionResetError if it has gone."""
        assert self._writer is not None
        await self._writer.drain()
        if self._gone():
            raise ConnectionResetError("the client has gone, or stopped reading")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise RuntimeError("the writer waits although drain is False")
