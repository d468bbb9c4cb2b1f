"""Who asks over HTTP: `Authorization: Bearer KEY`, on every route but those that say nothing."""

from collections.abc import Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from frontends.access.caller import TIMEOUT, Caller
from frontends.access.control import Access
from frontends.access.trace_context import trace_of
from frontends.http.request_checks import Handler
from frontends.openai.errors import HTTPFailure
from llmserve import InvalidRequest, Timeline

# Probes: orchestrators and load balancers have no key. The server compares the resolved route, never the path as the client sent it.
OPEN = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
# Where a proxy has put the server: see `--root-path`.
ROOT = web.AppKey("root", str)

# The request's sequences, in the order in which they reach the manager. It is set where they are logged.
TIMELINES = web.RequestKey("timelines", list[Timeline])
CALLER = web.RequestKey("caller", Caller)


def ask_for_key(access: Access) -> Middleware:
    """A middleware that lets through who shows a key, before anything of the body is read."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        key = None
        if access.keys is not None and route_of(request) not in OPEN:
            key = access.find(secret_of(request.headers.getall(hdrs.AUTHORIZATION, [])))
            if key is None:
                raise no_key()
        trace = trace_of(lambda name: request.headers.getall(name, []))
        on_arrival = request[TIMELINES].append if TIMELINES in request else None
        request[CALLER] = Caller(key.tenant if key else None, key.id if key else None, _deadline(request), trace, on_arrival)
        return await handler(request)

    return authenticate


def route_of(request: web.Request) -> str | None:
    """The route that answers, in a word from a closed set; None where there is none."""
    resource = request.match_info.route.resource
    return resource.canonical.removeprefix(request.config_dict.get(ROOT, "")) if resource is not None else None


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def no_key() -> HTTPFailure:
    """The same for every client: not what was wrong with its key, nor whether there is such a path."""
    return HTTPFailure(401, "this server wants an API key: Authorization: Bearer KEY", "invalid_api_key", _CHALLENGE)


def secret_of(authorization: Sequence[str]) -> str:
    """The key that the headers `Authorization` show. No client has an empty one."""
    if len(authorization) != 1:
        return ""
    scheme, _, secret = authorization[0].partition(" ")
    return secret if scheme.lower() == "bearer" else ""


def _deadline(request: web.Request) -> float | None:
    """`X-Request-Timeout`, in seconds."""
    value = request.headers.get(TIMEOUT)
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        raise InvalidRequest(f"{TIMEOUT} must be a number of seconds", TIMEOUT) from None
