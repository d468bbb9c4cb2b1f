"""Reads a request in the ingress, with the server's checks of keys and body sizes."""

import re
import time
from collections.abc import AsyncIterable, Iterable
from typing import Any

from aiohttp import hdrs, web

from frontends.access.control import Access
from frontends.cluster.relay import RelayedRequest, end_to_end
from frontends.http.authentication import KEY_HEADERS, is_open, no_key, secret_of
from frontends.http.request_checks import MAX_BODY, receive, too_large
from frontends.net.receive_budget import ReceiveBudget
from frontends.openai.errors import HTTPFailure

# A valid target of a request line.
_TARGET = re.compile(r"/[!-~]*", re.ASCII)

# Method, target, raw headers and the chunks of the body.
Parts = tuple[str, str, Iterable[tuple[bytes, bytes]], AsyncIterable[bytes]]


def of_aiohttp(request: web.Request) -> Parts:
    """Return the parts of a request to the ingress's own port."""
    return request.method, request.raw_path, request.raw_headers, request.content.iter_any()


def of_starlette(request: Any) -> Parts:
    """Return the parts of a request from Ray Serve's proxy, which neither limits bodies nor checks keys."""
    scope = request.scope
    path, query = scope.get("raw_path") or scope["path"].encode(), scope.get("query_string", b"")
    target = path + b"?" + query if query else path
    return request.method, target.decode("latin-1"), request.headers.raw, request.stream()


class Intake:
    """The checks of one ingress.

    Args:
        access: the API keys.
        max_incomplete: as for `build_app`.
    """

    def __init__(self, access: Access | None = None, max_incomplete: int | None = None) -> None:
        self._access = access or Access()
        self._budget = ReceiveBudget(time.monotonic, max_incomplete)

    async def read(self, method: str, target: str, raw: Iterable[tuple[bytes, bytes]], body: AsyncIterable[bytes]) -> RelayedRequest:
        """Return a request as a message. Raises HTTPFailure."""
        if not _TARGET.fullmatch(target):
            raise HTTPFailure(400, "the request target must be a path in printable ASCII", "invalid_target")
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
        self._check_key(target, headers)
        for name, value in headers:
            if name.lower() == "content-length" and (not value.isdecimal() or int(value[:20]) > MAX_BODY):
                raise too_large()
        whole = await receive(body, self._budget)
        # The body has arrived, so the client's Expect header means nothing to the replica.
        kept = tuple((name, value) for name, value in end_to_end(headers) if name.lower() != hdrs.EXPECT.lower())
        return RelayedRequest(method, target, kept, whole)

    def _check_key(self, target: str, headers: list[tuple[str, str]]) -> None:
        """Check the key, by the path that the client sent.

        The replica checks again by its route.
        """
        if self._access.keys is not None and not is_open(target.partition("?")[0]):
            shown = ([value for name, value in headers if name.lower() == header.lower()] for header in KEY_HEADERS)
            if self._access.find(secret_of(*shown)) is None:
                raise no_key()
