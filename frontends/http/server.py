"""aiohttp's server with the bounds that it has not: of connections, and of the time that a client may take to ask and to read.

aiohttp 3.14 has one timeout for a connection, which also bounds the headers (75 s), and waits without end for a client that does not read
a whole answer. The body's deadline is the routes' own (`frontends.http.request_checks.read`).
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

# For a request's line and headers, from the connection or from their first byte. nginx has 60 s; its hardening guides (CIS) 10 s.
HEADER_SECONDS = 10.0
# Between requests. 3630 s is aiohttp's default for AppRunner.
IDLE_SECONDS = 75.0
# After draining there is nothing left to wait for but sockets to close.
CLOSE_SECONDS = 2.0
# What is left of a body that nobody wants is read for so long, so that the answer is not lost in a reset.
LINGER_SECONDS = 2.0


class GuardedHandler(web.RequestHandler):
    """One connection; `left` is called when it is lost."""

    __slots__ = ("_header_timer", "_left", "_watch", "made")

    def __init__(self, server: web.Server, left: Callable[[], None], **options: Any) -> None:
        super().__init__(server, **options)
        self.made = False
        self._left = left
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        super().connection_made(transport)
        self._watch = WriteWatch(self._loop, cast("asyncio.Transport", transport))
        self._await_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._calm()
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
        """What could not be parsed, or failed unforeseen: fixed words, where aiohttp's quote what was sent."""
        if isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers:
            # For a path that does not exist aiohttp 3.14 refuses an Expect before any middleware, and fails to quote what is no text.
            status = HTTPStatus.EXPECTATION_FAILED
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("a handler failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was on its way already")
        known = HTTPStatus(status)
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        response = web.Response(
            body=_error(f"{known.value} {known.phrase}", kind, "http_error"), status=status, content_type="application/json"
        )
        response.headers[hdrs.SERVER] = SERVER
        response.force_close()
        return response

    def _fail_body(self) -> None:
        """A body that breaks off in nonsense has ended: aiohttp puts the error behind its request, whose handler waits for more."""
        request = self._current_request
        if self._messages and request is not None and not request.content.is_eof() and isinstance(self._messages[-1][0], _ErrInfo):
            self._messages.clear()
            request.content.set_exception(web.RequestPayloadError("the body's transfer encoding is broken"))
            # Nothing is left to be read after the answer either.
            request.content.feed_eof()
            self.close()

    def _asked(self) -> bool:
        """Whether a request's headers are here; if not, what came is the beginning of one."""
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
async def running(app: web.Application, limiter: ConnectionLimiter | None = None, tls: TLS | None = None) -> AsyncIterator[Acceptor]:
    """Run an application, whose handlers end when their clients go; at the end its connections are closed. Listens nowhere by itself:
    see `frontends.net.acceptor.listen`."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None

    def make(left: Callable[[], None]) -> GuardedHandler:
        # What is compressed is refused before it is read (`frontends.http.request_checks`); this way nothing ever unpacks it.
        return GuardedHandler(
            server,
            left,
            loop=loop,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
        )

    refusal = _plain(503, "this server has as many connections as it may", "too_many_connections")
    acceptor = Acceptor(make, refusal, limiter or ConnectionLimiter(), tls)
    try:
        yield acceptor
    finally:
        with anyio.CancelScope(shield=True):
            await acceptor.close()
            await runner.cleanup()


def _plain(status: int, message: str, code: str) -> bytes:
    """A whole answer, for where there is no request to answer."""
    body = _error(message, "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "service_unavailable", code)
    retry = f"Retry-After: {RETRY_AFTER[code]:.0f}\r\n" if code in RETRY_AFTER else ""
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{retry}"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def _error(message: str, kind: str, code: str) -> bytes:
    return msgspec.json.encode(ErrorBody(ErrorDetail(message, kind, None, code)))
