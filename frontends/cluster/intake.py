"""Reads a request in the ingress, with the server's checks of keys and body sizes."""

import re
import time
from collections.abc import Iterable
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

RawHeaders = Iterable[tuple[bytes, bytes]]


class Intake:
    """The checks of one ingress.

    Args:
        access: the API keys.
        max_incomplete: as for `build_app`.

    Attributes:
        budget: the memory for bodies that are still arriving.
    """

    def __init__(self, access: Access | None = None, max_incomplete: int | None = None) -> None:
        self._access = access or Access()
        self.budget = ReceiveBudget(time.monotonic, max_incomplete)

    @property
    def asks_for_keys(self) -> bool:
        """Whether every client must show a key."""
        return self._access.keys is not None

    def check(self, target: str, raw: RawHeaders) -> tuple[tuple[str, str], ...]:
        """Return the headers that are relayed, for a request whose body may be read. Raises HTTPFailure."""
        if not _TARGET.fullmatch(target):
            raise HTTPFailure(400, "the request target must be a path in printable ASCII", "invalid_target")
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
        self._check_key(target, headers)
        for name, value in headers:
            if name.lower() == "content-length" and (not value.isdecimal() or int(value[:20]) > MAX_BODY):
                raise too_large()
        # The replica gets the body when it is here, so the client's Expect header means nothing there.
        return tuple((name, value) for name, value in end_to_end(headers) if name.lower() != hdrs.EXPECT.lower())

    async def read(self, request: Any) -> RelayedRequest:
        """Return a Starlette request from Ray Serve's proxy, which neither limits bodies nor checks keys.

        Raises HTTPFailure.
        """
        scope = request.scope
        path, query = scope.get("raw_path") or scope["path"].encode(), scope.get("query_string", b"")
        target = (path + b"?" + query if query else path).decode("latin-1")
        headers = self.check(target, request.headers.raw)
        return RelayedRequest(request.method, target, headers, await receive(request.stream(), self.budget))

    def _check_key(self, target: str, headers: list[tuple[str, str]]) -> None:
        """Check the key, by the path that the client sent.

        The replica checks again by its route.
        """
        if self._access.keys is not None and not is_open(target.partition("?")[0]):
            shown = ([value for name, value in headers if name.lower() == header.lower()] for header in KEY_HEADERS)
            if self._access.find(secret_of(*shown)) is None:
                raise no_key()
