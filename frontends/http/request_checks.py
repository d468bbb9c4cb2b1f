"""What form a request must have before anybody looks at what it wants: its Host, its target, its headers, its body."""

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
# What the application's bodies may take together while they arrive.
BUDGET = web.AppKey("receive_budget", ReceiveBudget)
# Origins whose pages may call the application, beside its own (`frontends.http.origins`).
ORIGINS = web.AppKey("origins", Container[str])
BODY = web.RequestKey("body", bytes)

# A name or an address, and a port: nothing that a URL parser could take for a path, a query or a user (CVE-2026-48746).
_HOST = re.compile(r"([A-Za-z0-9_~-]+(\.[A-Za-z0-9_~-]+)*\.?|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
REQUEST_ID = "X-Request-Id"
# Two servers, or two lines of this one, might go by different ones. aiohttp refuses a second Host, Content-Type or Content-Length itself.
ONCE = (hdrs.ORIGIN, hdrs.CONTENT_ENCODING, hdrs.EXPECT, HEADER, TIMEOUT)
CONTINUE = "100-continue"


@web.middleware
async def check_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Raises HTTPFailure for a request that another server on its way could have read in another way, and for what has no place here."""
    _check_head(request)
    if request.body_exists:
        _check_body_headers(request)
    return await handler(request)


def _check_head(request: web.Request) -> None:
    if request.version not in (HttpVersion10, HttpVersion11):
        raise HTTPFailure(400, "only HTTP/1.0 and HTTP/1.1 are spoken here", "invalid_version")
    if not request.raw_path.startswith("/"):
        raise HTTPFailure(400, "the request's target must be a path", "invalid_target")
    host = request.headers.get(hdrs.HOST)
    if not (host is None and request.version < HttpVersion11) and not _HOST.fullmatch(host or ""):
        raise HTTPFailure(400, "the Host header is no name and no address", "invalid_host")
    if request.version < HttpVersion11 and hdrs.TRANSFER_ENCODING in request.headers:
        raise HTTPFailure(400, "HTTP/1.0 has no transfer encodings", "invalid_headers")
    for name in ONCE:
        if len(request.headers.getall(name, [])) > 1:
            raise HTTPFailure(400, f"the header {name} was sent more than once", "invalid_headers")
    origin = request.headers.get(hdrs.ORIGIN)
    # A page in somebody's browser may send to this machine what its user could.
    if origin is not None and not _is_own(origin, host) and origin not in request.config_dict.get(ORIGINS, ()):
        words = "pages of other origins may not call this server, nor pages behind a proxy that changes the Host: see --allowed-origin"
        raise HTTPFailure(403, words, "cross_origin")
    if request.headers.get(hdrs.EXPECT, CONTINUE).lower() != CONTINUE:
        raise HTTPFailure(417, "the only expectation that is met is 100-continue", "unknown_expectation")


def _is_own(origin: str, host: str | None) -> bool:
    """Compared as text: what is no origin is none of ours."""
    scheme, _, place = origin.partition("://")
    return host is not None and scheme in ("http", "https") and place.lower() == host.lower()


def _check_body_headers(request: web.Request) -> None:
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise HTTPFailure(415, "compressed bodies are not taken", "unsupported_encoding")
    kind = request.headers.get(hdrs.CONTENT_TYPE)
    if kind is not None and kind.partition(";")[0].strip().lower() != "application/json":
        raise HTTPFailure(415, "send the body as Content-Type: application/json", "unsupported_media_type")
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise too_large()


async def expect_later(request: web.Request) -> None:
    """A route's `expect_handler` that leaves `Expect: 100-continue` unanswered until the body is wanted (`read`): whoever is refused need
    not have sent it."""


async def take(request: web.Request) -> bytes:
    """The body, which the request keeps no longer. Raises HTTPFailure as `read` does."""
    body = await read(request)
    del request[BODY]
    return body


async def read(request: web.Request) -> bytes:
    """The body, which can be read again. Raises HTTPFailure for one that is too large or too slow, or finds no room."""
    if BODY in request:
        return request[BODY]
    if (
        hdrs.EXPECT in request.headers
        and request.version >= HttpVersion11
        and request.transport is not None
        and not request.content.is_eof()
    ):
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        request[BODY] = await receive(request.content.iter_any(), request.config_dict[BUDGET])
    except web.RequestPayloadError:
        raise HTTPFailure(400, "the body's transfer encoding is broken", "invalid_body") from None
    return request[BODY]


async def receive(chunks: AsyncIterable[bytes], budget: ReceiveBudget) -> bytes:
    """A body as it arrives. aiohttp's own `request.read()` keeps the body until the request has ended, and its buffer grows as it likes.

    Raises HTTPFailure for one that is too large or too slow, or finds no room.
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
    """aiohttp reads the rest of the body for `LINGER_SECONDS`, so that the client gets this, and closes the connection."""
    return HTTPFailure(503, REFUSAL, "receiving_too_much")


def too_slow() -> HTTPFailure:
    return HTTPFailure(408, f"the body did not arrive within {deadlines.BODY_SECONDS:g} s", "body_timeout")


def too_large() -> HTTPFailure:
    return HTTPFailure(413, f"the body is larger than {MAX_BODY} bytes", "body_too_large")


def client_id(request: web.Request) -> str | None:
    """The client's own name for the request, if it is one that may be written into headers and logs. It is a key to nothing."""
    name = request.headers.get(REQUEST_ID, "")
    return name if _ID.fullmatch(name) else None
