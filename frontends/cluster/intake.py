"""A request on its way through the ingress, checked before its body is read, as the server itself checks it. Ray Serve has no bound of a
body, and asks for no key."""

import asyncio
import re
import time
from typing import Any

from aiohttp import hdrs

from frontends.access.control import Access
from frontends.cluster.relay import RelayedRequest, end_to_end
from frontends.http.authentication import OPEN, no_key, secret_of
from frontends.http.request_checks import MAX_BODY, receive, too_large
from frontends.net.receive_budget import ReceiveBudget
from frontends.openai.errors import HTTPFailure

# What may stand in a request line.
_TARGET = re.compile(r"/[!-~]*", re.ASCII)


class Intake:
    """One per ingress. `access` says whose keys are let in; `max_incomplete` is as `build_app`'s."""

    def __init__(self, access: Access | None = None, max_incomplete: int | None = None) -> None:
        self._access = access or Access()
        self._budget = ReceiveBudget(time.monotonic, max_incomplete)
        self._following: asyncio.Task[None] | None = None

    async def read(self, request: Any) -> RelayedRequest:
        """Starlette's request, as a message. Raises HTTPFailure."""
        if self._following is None:
            # Here, where there is an event loop. Replicas tell the operator what has changed.
            self._following = asyncio.get_running_loop().create_task(self._access.follow(quiet=True))
        target = _target(request.scope)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        self._check_key(target, headers)
        for name, value in headers:
            if name.lower() == "content-length" and (not value.isdecimal() or int(value[:20]) > MAX_BODY):
                raise too_large()
        body = await receive(request.stream(), self._budget)
        # The body is here: the client need not be told to send it.
        kept = tuple((name, value) for name, value in end_to_end(headers) if name.lower() != hdrs.EXPECT.lower())
        return RelayedRequest(request.method, target, kept, body)

    def _check_key(self, target: str, headers: list[tuple[str, str]]) -> None:
        """By the path as it was sent: a replica looks again, by its route."""
        if self._access.keys is not None and target.partition("?")[0] not in OPEN:
            shown = secret_of([value for name, value in headers if name.lower() == "authorization"])
            if self._access.find(shown) is None:
                raise no_key()


def _target(scope: Any) -> str:
    """The path and the query as they were sent. Raises HTTPFailure for what no server would take for them."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    target = (path + b"?" + query if query else path).decode("latin-1")
    if not _TARGET.fullmatch(target):
        raise HTTPFailure(400, "the request's target must be a path, in printable ASCII", "invalid_target")
    return str(target)
