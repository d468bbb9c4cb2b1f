"""Reads a request in the ingress, with the server's checks of keys and body sizes.

Ray Serve neither limits bodies nor checks API keys.
"""

import asyncio
import re
import time
from typing import Any

from aiohttp import hdrs

from frontends.access.control import Access
from frontends.cluster.relay import RelayedRequest, end_to_end
from frontends.http.authentication import KEY_HEADERS, is_open, no_key, secret_of
from frontends.http.request_checks import MAX_BODY, receive, too_large
from frontends.net.receive_budget import ReceiveBudget
from frontends.openai.errors import HTTPFailure

# A valid target of a request line.
_TARGET = re.compile(r"/[!-~]*", re.ASCII)


class Intake:
    """The checks of one ingress.

    Args:
        access: the API keys.
        max_incomplete: as for `build_app`.
    """

    def __init__(self, access: Access | None = None, max_incomplete: int | None = None) -> None:
        self._access = access or Access()
        self._budget = ReceiveBudget(time.monotonic, max_incomplete)
        self._following: asyncio.Task[None] | None = None

    async def read(self, request: Any) -> RelayedRequest:
        """Return a Starlette request as a message. Raises HTTPFailure."""
        if self._following is None:
            # Started here, because it needs the running event loop. Quiet, because replicas log
            # changes of the file.
            self._following = asyncio.get_running_loop().create_task(self._access.follow(quiet=True))
        target = _target(request.scope)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        self._check_key(target, headers)
        for name, value in headers:
            if name.lower() == "content-length" and (not value.isdecimal() or int(value[:20]) > MAX_BODY):
                raise too_large()
        body = await receive(request.stream(), self._budget)
        # The body has arrived, so the replica must not see an Expect header.
        kept = tuple((name, value) for name, value in end_to_end(headers) if name.lower() != hdrs.EXPECT.lower())
        return RelayedRequest(request.method, target, kept, body)

    def _check_key(self, target: str, headers: list[tuple[str, str]]) -> None:
        """Check the key, by the path that the client sent.

        The replica checks again by its route.
        """
        if self._access.keys is not None and not is_open(target.partition("?")[0]):
            shown = ([value for name, value in headers if name.lower() == header.lower()] for header in KEY_HEADERS)
            if self._access.find(secret_of(*shown)) is None:
                raise no_key()


def _target(scope: Any) -> str:
    """Return path and query as the client sent them. Raises HTTPFailure if they are invalid."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    target = (path + b"?" + query if query else path).decode("latin-1")
    if not _TARGET.fullmatch(target):
        raise HTTPFailure(400, "the request target must be a path in printable ASCII", "invalid_target")
    return str(target)
