"""Authentication: `Authorization: Bearer KEY` on every route except health probes."""

from collections.abc import Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from frontends.access.caller import TIMEOUT, Caller
from frontends.access.control import Access
from frontends.access.trace_context import trace_of
from frontends.http.request_checks import Handler
from frontends.openai.errors import HTTPFailure
from llmserve import InvalidRequest, Timeline

# Routes that need no key: orchestrators and load balancers have none. The server compares the
# resolved route, never the path that the client sent.
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
# The page's files have no secrets, and the page itself asks the user for the key.
# The empty path is the path prefix alone, which redirects to the page.
PAGES = frozenset({"", "/", "/docs", "/page/{name}"})
# The headers that may hold the key, in the order of `secret_of`.
KEY_HEADERS = (hdrs.AUTHORIZATION, "X-Api-Key")
# The path prefix under which a proxy serves the server: see `--root-path`.
ROOT = web.AppKey("root", str)

# The request's sequences, in the order in which they reach the manager. Only set with a request
# log.
TIMELINES = web.RequestKey("timelines", list[Timeline])
CALLER = web.RequestKey("caller", Caller)


def ask_for_key(access: Access) -> Middleware:
    """Return a middleware that requires a valid key, before any of the body is read."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        key = None
        if access.keys is not None and route_of(request) not in PROBES | PAGES:
            key = access.find(secret_of(*(request.headers.getall(name, []) for name in KEY_HEADERS)))
            if key is None:
                raise no_key()
        trace = trace_of(lambda name: request.headers.getall(name, []))
        on_arrival = request[TIMELINES].append if TIMELINES in request else None
        request[CALLER] = Caller(key.tenant if key else None, key.id if key else None, _deadline(request), trace, on_arrival)
        return await handler(request)

    return authenticate


def route_of(request: web.Request) -> str | None:
    """Return the route that answers, from a closed set; None where there is none."""
    resource = request.match_info.route.resource
    return resource.canonical.removeprefix(request.config_dict.get(ROOT, "")) if resource is not None else None


def path_of(request: web.Request) -> str:
    """Return the path without the prefix under which a proxy serves the server."""
    return request.path.removeprefix(request.config_dict.get(ROOT, ""))


def is_open(path: str) -> bool:
    """Return whether a path, as the client sent it, may need no key; the route decides."""
    return path in PROBES | PAGES or path.startswith("/page/")


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def no_key() -> HTTPFailure:
    """Return the error for a missing or invalid key.

    The error is the same for all causes, and does not reveal whether the path exists.
    """
    return HTTPFailure(401, "this server requires an API key: Authorization: Bearer KEY", "invalid_api_key", _CHALLENGE)


def secret_of(authorization: Sequence[str], api_key: Sequence[str]) -> str:
    """Return the key in the headers; empty, which is never valid, without exactly one.

    Anthropic's client sends its key as `X-Api-Key`.
    """
    if not authorization and len(api_key) == 1:
        return api_key[0]
    if len(authorization) != 1:
        return ""
    scheme, _, secret = authorization[0].partition(" ")
    return secret if scheme.lower() == "bearer" else ""


def _deadline(request: web.Request) -> float | None:
    """Return the value of `X-Request-Timeout` in seconds."""
    value = request.headers.get(TIMEOUT)
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        raise InvalidRequest(f"{TIMEOUT} must be a number of seconds", TIMEOUT) from None
