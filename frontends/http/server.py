"""aiohttp's server with limits on connections and on the time to send requests and read responses.

aiohttp 3.14 has one timeout per connection (75 s), which also applies to the headers. It waits
without end for a client that does not read its whole response. The routes limit the time for a body
(`frontends.http.request_checks.read`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, cast

import anyio
import msgspec
from aiohttp import hdrs, web
from aiohttp.web_protocol import _ErrInfo

from frontends.http.access_log import SERVER
from frontends.net.acceptor import Acceptor
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.deadlines import spread
from frontends.net.tls import TLS
from frontends.net.write_watch import WriteWatch
from frontends.openai.errors import ErrorBody, ErrorDetail
from llmserve.admission.retry_after import RETRY_AFTER

logger = logging.getLogger(__name__)

# Maximum seconds for a request's line and headers, from the connection or from their first byte.
# nginx's default is 60 s, and its CIS hardening guide has 10 s.
HEADER_SECONDS = 10.0
# Maximum idle seconds between requests. aiohttp's default for AppRunner is 3630 s.
IDLE_SECONDS = 75.0
# Maximum seconds to close sockets after the drain.
CLOSE_SECONDS = 2.0
# Seconds for which the rest of a refused body is read, so that a reset does not lose the response.
LINGER_SECONDS = 2.0
# Maximum bytes of one read from a connection. asyncio reads up to 256 KiB from each in one turn of
# the event loop: 64 bodies with images that arrive together then hold the loop for twice as long.
READ_BYTES = 2**16


class GuardedHandler(web.RequestHandler):
    """One connection. It calls `left` when it is lost."""

    __slots__ = ("_header_timer", "_left", "_watch", "_watched", "made")

    def __init__(self, server: web.Server, left: Callable[[], None], *, watched: bool, **options: Any) -> None:
        super().__init__(server, **options)
        self.made = False
        self._left = left
        self._watched = watched
        self._watch: WriteWatch | None = None
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        super().connection_made(transport)
        # A TLS transport has no such attribute.
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES
        if self._watched:
            self._watch = WriteWatch(self._loop, cast("asyncio.Transport", transport))
        self._await_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._calm()
        if self._watch is not None:
            self._watch.stop()
        super().connection_lost(exc)
        self._left()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._fail_body()
        if self._asked():
            self._calm()
        elif self._header_timer is None:
            self._await_headers()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer an unparsable request or an unexpected failure with a fixed text.

        aiohttp's text would quote the client's input.
        """
        if isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers:
            # For an unknown path aiohttp 3.14 rejects an Expect before any middleware, and fails to
            # quote a header that is not text.
            status = HTTPStatus.EXPECTATION_FAILED
        # A token that comes in the moment in which the client leaves meets a closing connection.
        gone = isinstance(exc, ConnectionError) and (self.transport is None or self.transport.is_closing())
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not gone:
            logger.error("a handler failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a response has already begun")
        known = HTTPStatus(status)
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        response = web.Response(
            body=_error(f"{known.value} {known.phrase}", kind, "http_error"), status=status, content_type="application/json"
        )
        response.headers[hdrs.SERVER] = SERVER
        response.force_close()
        return response

    def _fail_body(self) -> None:
        """End a body whose encoding is invalid.

        aiohttp queues the error after the request, whose handler would wait for more of the body.
        """
        request = self._current_request
        if self._messages and request is not None and not request.content.is_eof() and isinstance(self._messages[-1][0], _ErrInfo):
            self._messages.clear()
            request.content.set_exception(web.RequestPayloadError("the body's transfer encoding is invalid"))
            # Nothing more is read after the response either.
            request.content.feed_eof()
            self.close()

    def _asked(self) -> bool:
        return bool(self._messages) or self._request_in_progress

    def _await_headers(self) -> None:
        self._header_timer = self._loop.call_later(spread(HEADER_SECONDS), self._late)

    def _late(self) -> None:
        self._header_timer = None
        if self._asked() or self.transport is None:
            return
        self.transport.write(_plain(408, f"no request within {HEADER_SECONDS:g} s", "header_timeout"))
        self.force_close()

    def _calm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


@asynccontextmanager
async def running(
    app: web.Application, limiter: ConnectionLimiter | None = None, tls: TLS | None = None, *, watched: bool = True
) -> AsyncIterator[Acceptor]:
    """Run an application, and close its connections at the end.

    `watched` closes connections whose clients have stopped reading. A program of ours that relays
    reads in bursts, and watches its own clients.

    A handler is cancelled when its client disconnects. To accept connections, use
    `frontends.net.acceptor.listen`.
    """
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None

    def make(left: Callable[[], None]) -> GuardedHandler:
        # Compressed bodies are rejected before they are read (`frontends.http.request_checks`), and
        # must never be decompressed.
        return GuardedHandler(
            server,
            left,
            watched=watched,
            loop=loop,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
        )

    refusal = _plain(503, "the server's connection limit is reached", "too_many_connections")
    acceptor = Acceptor(make, refusal, limiter or ConnectionLimiter(), tls)
    try:
        yield acceptor
    finally:
        with anyio.CancelScope(shield=True):
            await acceptor.close()
            await runner.cleanup()


def _plain(status: int, message: str, code: str) -> bytes:
    """Return a complete HTTP response, for connections without a request."""
    body = _error(message, "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "service_unavailable", code)
    retry = f"Retry-After: {RETRY_AFTER[code]:.0f}\r\n" if code in RETRY_AFTER else ""
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{retry}"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def _error(message: str, kind: str, code: str) -> bytes:
    return msgspec.json.encode(ErrorBody(ErrorDetail(message, kind, None, code)))
