"""One line of JSON for each HTTP request but probes: who, what, how it ended, how long it took and how many tokens. No text, no key.

Every value is from a closed set, a number, or a name that was checked; what else a client sent is not written.
"""

import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from frontends.access.caller import Caller
from frontends.http.authentication import CALLER, TIMELINES, route_of
from frontends.http.proxies import CLIENT, SCHEME
from frontends.http.request_checks import REQUEST_ID, Handler, client_id
from frontends.logs.log_writer import LogWriter, open_appending
from frontends.logs.operator_log import say
from llmserve import ConfigurationError, Timeline
from llmserve.request import Outcome

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# nginx's word for a client that went before its answer.
GONE = 499
SERVER = "llmserve"

NAME = web.RequestKey("name", str)
ANSWER = web.RequestKey("answer", str)
# Requests of an answer for each of its prompts.
PER_PROMPT = web.RequestKey("per_prompt", int)
SENT = web.RequestKey("sent", int)

# What orchestrators, load balancers and scrapers ask every few seconds, by the route.
# The status of an error that no code has foreseen.
UNFORESEEN = 500
PROBES = frozenset(
    {"/health", "/health/live", "/health/ready", "/health/generate", "/health_generate", "/ping", "/load", "/metrics", "/metrics.json"}
)

# As a label of `llmserve_log_lines_dropped_total`.
NAME_OF_LOG = "requests"

Write = Callable[[bytes], Any]


def open_log(path: Path | None) -> LogWriter | None:
    """Takes lines for a file, which they are added to, or for standard output if the path is "-"; None without a path.

    Close it to write what it still holds. Raises ConfigurationError.
    """
    if path is None:
        return None
    if str(path) == "-":
        sys.stdout.flush()
        return LogWriter(NAME_OF_LOG, sys.stdout.fileno(), say)
    try:
        file = open_appending(path)
    except OSError as error:
        raise ConfigurationError(f"--request-log {path}: {error.strerror}") from None
    return LogWriter(NAME_OF_LOG, file, say, path)


def name_and_log(write: Write | None, tenants: Callable[[], Collection[str]] = tuple, *, probes: bool = False) -> Middleware:
    """A middleware that gives each request a name, its client's own where that is fit for one, and writes its line.

    `tenants` gives those that the operator has named: any other name is text that a client sent. A probe has a line if `probes` is True,
    or if the server failed in it.
    """

    @web.middleware
    async def log(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[NAME] = client_id(request) or uuid.uuid4().hex
        began, status = time.monotonic(), GONE
        if write is not None:
            request[TIMELINES] = []
        try:
            response = await handler(request)
        except ConnectionError:
            raise
        except Exception:
            # Unforeseen: the server answers it with 500, unless an answer has begun.
            status = request.get(SENT, 500)
            raise
        else:
            status = response.status
            return response
        finally:
            if write is not None and (probes or status == UNFORESEEN or route_of(request) not in PROBES):
                write(_line(request, status, time.monotonic() - began, tenants()))

    return log


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer has the request's name, and not the versions of what serves it."""
    request[SENT] = response.status
    # Without a name it came past the middlewares: aiohttp itself refuses an Expect for a path that does not exist.
    response.headers[REQUEST_ID] = request.get(NAME) or uuid.uuid4().hex
    response.headers[hdrs.SERVER] = SERVER


def name_answer(request: web.Request, answer: str, per_prompt: int = 1) -> None:
    """Note the id that an answer carries. A request that its client has not named is named after it."""
    request[ANSWER], request[PER_PROMPT] = answer, per_prompt
    if client_id(request) is None:
        request[NAME] = answer


def _line(request: web.Request, status: int, seconds: float, tenants: Collection[str]) -> bytes:
    caller, timelines = request.get(CALLER), request[TIMELINES]
    fields = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request": request[NAME],
        "answer": request.get(ANSWER),
        "peer": request.get(CLIENT) or request.remote,
        "scheme": request.get(SCHEME) or request.scheme,
        "key": caller.key if caller else None,
        "tenant": _tenant(caller, timelines, tenants),
        "method": request.method if request.method in METHODS else "other",
        "route": route_of(request),
        "status": status,
        "seconds": round(seconds, 4),
        **_generation(timelines, request.get(PER_PROMPT, 1)),
    }
    return msgspec.json.encode(fields) + b"\n"


def _tenant(caller: Caller | None, timelines: Sequence[Timeline], named: Collection[str]) -> str | None:
    if caller is None or caller.tenant is not None or not timelines:
        return caller.tenant if caller else None
    return timelines[0].tenant if timelines[0].tenant in named else None


def _generation(timelines: Sequence[Timeline], per_prompt: int) -> dict[str, Any]:
    """What the engine did for the request, all its sequences together; None and 0 where nothing reached the manager."""
    # A sequence that ends early ends the others, which are cancelled. The log has why the first of those that were not ended so.
    ends = [one for one in timelines if one.outcome is not Outcome.COMPLETED]
    early = next((one for one in ends if one.outcome is not Outcome.CANCELLED), ends[0] if ends else None)
    last = early or (timelines[0] if timelines else None)
    return {
        "outcome": last.outcome if last else None,
        "reason": last.reason or None if last else None,
        "queue": _earliest(one.admitted - one.arrived for one in timelines if one.admitted is not None),
        "ttft": _earliest(one.first_token - one.arrived for one in timelines if one.first_token is not None),
        # As the answer's `usage` counts them: a prompt once, however many choices it has.
        "prompt_tokens": sum(one.prompt_tokens for one in timelines[::per_prompt]),
        "cached_tokens": sum(one.cached_tokens for one in timelines[::per_prompt]),
        "completion_tokens": sum(one.completion_tokens for one in timelines),
    }


def _earliest(seconds: Iterable[float]) -> float | None:
    found = min(seconds, default=None)
    return None if found is None else round(found, 4)
