"""CORS: pages of other origins that may call the server from a browser (Fetch standard)."""

import argparse
import re
from http import HTTPStatus

import attrs
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from frontends.http.request_checks import REQUEST_ID, Handler

ANY = "*"
METHODS = "GET, POST, DELETE"
# Response headers that a page may read, in addition to those that every page may read.
EXPOSED = f"{REQUEST_ID}, Retry-After, Retry-After-Ms, Idempotent-Replayed"
# Seconds for which a browser may cache the response to a preflight. Chromium caches for at most two
# hours.
MAX_AGE = "600"
_ORIGIN = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII)
# Header names as a preflight lists them.
_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,2048}", re.ASCII)


@attrs.frozen
class Origins:
    """The allowed origins.

    Pages of these origins can send no credentials except an API key that the page itself holds.

    Attributes:
        allowed: origins as browsers send them, or `*` for any.
    """

    allowed: frozenset[str] = frozenset()

    def __contains__(self, origin: object) -> bool:
        return ANY in self.allowed or str(origin).lower() in self.allowed

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the CORS headers, for `on_response_prepare`, so that pages can read errors too."""
        if not self.allowed:
            return
        if ANY not in self.allowed:
            response.headers[hdrs.VARY] = hdrs.ORIGIN
        if (origin := _sent(request)) is not None and origin in self:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = ANY if ANY in self.allowed else origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED


def answer_preflights(origins: Origins) -> Middleware:
    """Return a middleware that answers preflight requests, which carry no API key."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = _sent(request)
        if origin is None or origin not in origins or not _is_preflight(request):
            return await handler(request)
        headers: dict[str, str] = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS, hdrs.ACCESS_CONTROL_MAX_AGE: MAX_AGE}
        names = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        if _NAMES.fullmatch(names):
            # Allow any requested header: OpenAI's client sends a dozen custom ones
            # (X-Stainless-...).
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = names
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            # Chromium requires this before a public page calls a server in a private network.
            headers["Access-Control-Allow-Private-Network"] = "true"
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)

    return answer


def _is_preflight(request: web.Request) -> bool:
    return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def _sent(request: web.Request) -> str | None:
    """Return the request's Origin; None if it has none or several."""
    found = request.headers.getall(hdrs.ORIGIN, [])
    return found[0] if len(found) == 1 else None


def parse_origin(text: str) -> str:
    """Parse the origin of an option. Raises ArgumentTypeError."""
    if text != ANY and not _ORIGIN.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is not an origin: use http:// or https://, a host and an optional port, without a path")
    return text.lower()
