"""Every error as an error object with its status: OpenAI's, or that of the route's API."""

from aiohttp import web

from frontends.answers.errors import described
from frontends.http.authentication import PAGES, ROOT, route_of
from frontends.http.request_checks import Handler
from frontends.http.responses import json_response
from frontends.openai import sse
from frontends.openai.errors import ErrorBody, HTTPFailure
from frontends.options.suggestions import nearest
from llmserve import LLMServeError

# No path of ours is longer. Longer texts take longer to compare.
MAX_PATH = 64


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as an error object with its status, without internal details."""
    try:
        return await handler(request)
    except LLMServeError as error:
        return _failure(error, request)
    except web.HTTPNotFound:
        return _no_route(request)
    except web.HTTPException as error:
        allow = {name: value for name, value in error.headers.items() if name == "Allow"}
        return _failure(HTTPFailure(error.status, error.reason, "http_error", allow), request)


def _no_route(request: web.Request) -> web.Response:
    """Return a redirect if the path only has an extra slash at its end, else a 404."""
    routes = {route.resource.canonical for route in request.app.router.routes() if route.resource is not None}
    # The raw path: a percent-encoded path matches no route.
    path = request.raw_path.partition("?")[0]
    if path.endswith("/") and (path := path[:-1]) in routes:
        # As sent: a decoded line break would be invalid in a header.
        _, mark, query = request.raw_path.partition("?")
        # 307 keeps the method and the body. The Location is a known path, never another host.
        return _failure(
            HTTPFailure(307, f"the path has no slash at its end: {path}", "http_error", {"Location": path + mark + query}), request
        )
    # Each path once, without its copy below the root path.
    paths = sorted(path for path in routes if request.config_dict[ROOT] + path in routes and path not in PAGES)
    near = nearest(path.removeprefix(request.config_dict[ROOT])[:MAX_PATH], paths)
    words = f"unknown path{f'; do you mean {near}?' if near else ''}; GET /openapi.json lists the {len(paths)} paths"
    return _failure(HTTPFailure(404, words, "http_error"), request)


def _failure(error: LLMServeError, request: web.Request) -> web.Response:
    return error_response(error, route_of(request) or "")


def error_response(error: LLMServeError, path: str) -> web.Response:
    """Return the response for an error, in the format of the path's API."""
    status, body, headers = described(error, path)
    return json_response(body, status, headers)


def last_event(error: LLMServeError, path: str) -> bytes:
    """Return the end of a stream that breaks off, in the format of the path's API."""
    _, body, _ = described(error, path)
    if isinstance(body, ErrorBody) and not path.endswith("/v1/responses"):
        return sse.event(body) + sse.DONE
    return b"event: error\n" + sse.event(body)
