"""One line of JSON for each HTTP request: who, what, how it ended and how long it took. No prompt, no answer, no key.

Every value is from a closed set, a number, or a name that was checked; what else a client sent is not written.
"""

import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from frontends.http.form import REQUEST_ID, Handler, client_id
from frontends.http.who import CALLER, route_of
from frontends.log_writer import LogWriter, open_appending
from frontends.startup import say
from llmserve import ConfigurationError

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# nginx's word for a client that went before its answer.
GONE = 499
SERVER = "llmserve"

NAME = web.RequestKey("name", str)
ANSWER = web.RequestKey("answer", str)
SENT = web.RequestKey("sent", int)

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


def name_and_log(write: Write | None) -> Middleware:
    """A middleware that gives each request a name, its client's own where that is fit for one, and writes its line."""

    @web.middleware
    async def log(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[NAME] = client_id(request) or uuid.uuid4().hex
        began, status = time.monotonic(), GONE
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
            if write is not None:
                write(_line(request, status, time.monotonic() - began))

    return log


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer has the request's name, and not the versions of what serves it."""
    request[SENT] = response.status
    # Without a name it came past the middlewares: aiohttp itself refuses an Expect for a path that does not exist.
    response.headers[REQUEST_ID] = request.get(NAME) or uuid.uuid4().hex
    response.headers[hdrs.SERVER] = SERVER


def name_answer(request: web.Request, answer: str) -> None:
    """Note the id that an answer carries. A request that its client has not named is named after it."""
    request[ANSWER] = answer
    if client_id(request) is None:
        request[NAME] = answer


def _line(request: web.Request, status: int, seconds: float) -> bytes:
    caller = request.get(CALLER)
    fields = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request": request[NAME],
        "answer": request.get(ANSWER),
        "peer": request.remote,
        "key": caller.key if caller else None,
        "tenant": caller.tenant if caller else None,
        "method": request.method if request.method in METHODS else "other",
        "route": route_of(request),
        "status": status,
        "seconds": round(seconds, 4),
    }
    return msgspec.json.encode(fields) + b"\n"
