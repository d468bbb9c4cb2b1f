"""Checks of a request's form before its content is read: Host, target, headers and body size."""

import asyncio
import math
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Container

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web

from frontends.access.caller import TIMEOUT
from frontends.http.idempotency_store import HEADER
from frontends.net import deadlines
from frontends.net.receive_budget import LARGEST, REFUSAL, Arrival, ReceiveBudget
from frontends.openai.errors import HTTPFailure

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY = LARGEST
# The memory limit for all bodies that are still arriving.
BUDGET = web.AppKey("receive_budget", ReceiveBudget)
# Origins, other than the server's, whose pages may call the application (`frontends.http.origins`).
ORIGINS = web.AppKey("origins", Container[str])
BODY = web.RequestKey("body", bytes)
# The path of the route that takes a form.
FORM = "/v1/files"

# A name or an address, and a port. It has no character that a URL parser could take for the start
# of a path, a query or a user (CVE-2026-48746).
_HOST = re.compile(r"([A-Za-z0-9_~-]+(\.[A-Za-z0-9_~-]+)*\.?|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
REQUEST_ID = "X-Request-Id"
# Headers that a request may send only once: two servers, or two parts of this one, might use
# different values. aiohttp itself rejects a second Host, Content-Type or Content-Length.
ONCE = (hdrs.ORIGIN, hdrs.CONTENT_ENCODING, hdrs.EXPECT, HEADER, TIMEOUT)
CONTINUE = "100-continue"


@web.middleware
async def check_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check a request's head.

    Raises HTTPFailure for a request that a proxy could interpret differently, and for unsupported
    features.
    """
    _check_head(request)
    if request.body_exists:
        _check_body_headers(request)
    return await handler(request)


def _check_head(request: web.Request) -> None:
    if request.version not in (HttpVersion10, HttpVersion11):
        raise HTTPFailure(400, "this server supports only HTTP/1.0 and HTTP/1.1", "invalid_version")
    if not request.raw_path.startswith("/"):
        raise HTTPFailure(400, "the request target must be a path", "invalid_target")
    host = request.headers.get(hdrs.HOST)
    if not (host is None and request.version < HttpVersion11) and not _HOST.fullmatch(host or ""):
        raise HTTPFailure(400, "the Host header is not a valid host name or address", "invalid_host")
    if request.version < HttpVersion11 and hdrs.TRANSFER_ENCODING in request.headers:
        raise HTTPFailure(400, "HTTP/1.0 has no transfer encodings", "invalid_headers")
    for name in ONCE:
        if len(request.headers.getall(name, [])) > 1:
            raise HTTPFailure(400, f"the header {name} was sent more than once", "invalid_headers")
    origin = request.headers.get(hdrs.ORIGIN)
    # A page in a user's browser can reach this server with the user's network access.
    if origin is not None and not _is_own(origin, host) and origin not in request.config_dict.get(ORIGINS, ()):
        words = "this page's origin may not call this server, or a proxy has changed the Host header: see --allowed-origin"
        raise HTTPFailure(403, words, "cross_origin")
    if request.headers.get(hdrs.EXPECT, CONTINUE).lower() != CONTINUE:
        raise HTTPFailure(417, "the only supported expectation is 100-continue", "unknown_expectation")


def _is_own(origin: str, host: str | None) -> bool:
    """Return whether an Origin header, compared as text, is the server's own origin."""
    scheme, _, place = origin.partition("://")
    return host is not None and scheme in ("http", "https") and place.lower() == host.lower()


def _check_body_headers(request: web.Request) -> None:
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise HTTPFailure(415, "compressed bodies are not supported", "unsupported_encoding")
    if takes_form(request):
        return
    kind = request.headers.get(hdrs.CONTENT_TYPE)
    if kind is not None and kind.partition(";")[0].strip().lower() != "application/json":
        raise HTTPFailure(415, "send the body as Content-Type: application/json", "unsupported_media_type")
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise too_large()


def takes_form(request: web.Request) -> bool:
    """Return whether the route takes a form, which it reads itself within its own limits."""
    resource = request.match_info.route.resource
    return request.method == hdrs.METH_POST and resource is not None and resource.canonical.endswith(FORM)


async def expect_later(request: web.Request) -> None:
    """Leave `Expect: 100-continue` unanswered until `read` needs the body.

    It is a route's `expect_handler`. A client whose request is refused need not send the body.
    """


async def take(request: web.Request) -> bytes:
    """Return the body and remove it from the request. Raises HTTPFailure as `read` does."""
    body = await read(request)
    del request[BODY]
    return body


async def read(request: web.Request) -> bytes:
    """Return the body and keep it in the request. Raises HTTPFailure as `receive` does."""
    if BODY in request:
        return request[BODY]
    allow_continue(request)
    try:
        request[BODY] = await receive(request.content.iter_any(), request.config_dict[BUDGET])
    except web.RequestPayloadError:
        raise HTTPFailure(400, "the body's transfer encoding is invalid", "invalid_body") from None
    return request[BODY]


def allow_continue(request: web.Request) -> None:
    """Tell a client that waits for it to send the body."""
    if (
        hdrs.EXPECT in request.headers
        and request.version >= HttpVersion11
        and request.transport is not None
        and not request.content.is_eof()
    ):
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def receive(chunks: AsyncIterable[bytes], budget: ReceiveBudget) -> bytes:
    """Receive a body within the limits of size, time and memory.

    aiohttp's `request.read()` keeps the body until the request has ended, and does not limit its
    buffer.

    Raises HTTPFailure for a body that is too large, too slow or exceeds the memory limit.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(deadlines.spread(deadlines.BODY_SECONDS)) as scope:
            arrival = Arrival(budget, lambda: scope.reschedule(-math.inf))
            try:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > MAX_BODY:
                        raise too_large()
                    if not arrival.grow(len(body)):
                        raise no_room()
            finally:
                arrival.end()
    except TimeoutError:
        raise no_room() if scope.when() == -math.inf else too_slow() from None
    return bytes(body)


def no_room() -> HTTPFailure:
    """Return the error for a body that exceeds the memory limit.

    aiohttp reads the rest of the body for `LINGER_SECONDS`, so that the client receives this error.
    It then closes the connection.
    """
    return HTTPFailure(503, REFUSAL, "receiving_too_much")


def too_slow() -> HTTPFailure:
    return HTTPFailure(408, f"the body did not arrive within {deadlines.BODY_SECONDS:g} s", "body_timeout")


def too_large() -> HTTPFailure:
    return HTTPFailure(413, f"the body is larger than {MAX_BODY} bytes", "body_too_large")


def client_id(request: web.Request) -> str | None:
    """Return the client's name for the request, if it is safe in headers and logs.

    The name grants access to nothing.
    """
    name = request.headers.get(REQUEST_ID, "")
    return name if _ID.fullmatch(name) else None
