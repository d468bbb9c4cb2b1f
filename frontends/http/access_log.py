"""The request log: one line of JSON per HTTP request, without prompts, answers or keys.

A line has the caller, the route, the outcome, times and token counts. Every value is a number, a
checked name or from a closed set; no other client input is written. Probes are not logged by
default.
"""

import asyncio
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
# nginx's status for a client that disconnected before its response.
GONE = 499
SERVER = "llmserve"

NAME = web.RequestKey("name", str)
ANSWER = web.RequestKey("answer", str)
# The number of sequences per prompt of an answer.
PER_PROMPT = web.RequestKey("per_prompt", int)
SENT = web.RequestKey("sent", int)
# What still makes the answer after the client got its first state.
TASK = web.RequestKey[asyncio.Task[None]]("task", asyncio.Task)

# The status of an unexpected error.
UNFORESEEN = 500
# Routes that orchestrators, load balancers and scrapers request every few seconds.
PROBES = frozenset(
    {"/health", "/health/live", "/health/ready", "/health/generate", "/health_generate", "/ping", "/load", "/metrics", "/metrics.json"}
)

# The log's label in the metric `llmserve_log_lines_dropped_total`.
NAME_OF_LOG = "requests"

Write = Callable[[bytes], Any]


def open_log(path: Path | None) -> LogWriter | None:
    """Open the request log: a file to append to, or standard output for "-"; None without a path.

    Close the writer to write its remaining lines. Raises ConfigurationError.
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
    """Return a middleware that names each request and writes its line.

    The name is the client's, if that is valid. `tenants` returns the tenants that the operator has
    named; other names are client input and not logged. A probe is logged if `probes` is True or the
    server failed. The line of a response in the background follows when that has ended.
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
            # Unexpected: the server answers with 500, unless a response has begun.
            status = request.get(SENT, 500)
            raise
        else:
            status = response.status
            return response
        finally:
            if write is not None and (probes or status == UNFORESEEN or route_of(request) not in PROBES):
                _at_end(request, lambda *_: write(_line(request, status, time.monotonic() - began, tenants())))

    return log


def _at_end(request: web.Request, end: Callable[..., object]) -> None:
    task = request.get(TASK)
    if task is None:
        end()
    else:
        task.add_done_callback(end)


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Add the request's name to every response, and hide the server's version."""
    request[SENT] = response.status
    # A request without a name bypassed the middlewares: aiohttp rejects an Expect for an unknown
    # path.
    response.headers[REQUEST_ID] = request.get(NAME) or uuid.uuid4().hex
    response.headers[hdrs.SERVER] = SERVER


def name_answer(request: web.Request, answer: str, per_prompt: int = 1) -> None:
    """Note the answer's id, which becomes the name of a request without a client's name."""
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
    """Return outcome, times and token counts over all sequences of a request.

    They are None and 0 where nothing reached the manager.
    """
    # A sequence that fails cancels the others. Log the first one that was not cancelled.
    ends = [one for one in timelines if one.outcome is not Outcome.COMPLETED]
    early = next((one for one in ends if one.outcome is not Outcome.CANCELLED), ends[0] if ends else None)
    last = early or (timelines[0] if timelines else None)
    return {
        "outcome": last.outcome if last else None,
        "reason": last.reason or None if last else None,
        "queue": _earliest(one.admitted - one.arrived for one in timelines if one.admitted is not None),
        "ttft": _earliest(one.first_token - one.arrived for one in timelines if one.first_token is not None),
        # Like the answer's `usage`: each prompt counts once, regardless of its number of choices.
        "prompt_tokens": sum(one.prompt_tokens for one in timelines[::per_prompt]),
        "cached_tokens": sum(one.cached_tokens for one in timelines[::per_prompt]),
        "completion_tokens": sum(one.completion_tokens for one in timelines),
    }


def _earliest(seconds: Iterable[float]) -> float | None:
    found = min(seconds, default=None)
    return None if found is None else round(found, 4)
