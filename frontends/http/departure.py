"""Closing client connections after SIGTERM, so that no client loses a request to a closed one."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import attrs
from aiohttp import hdrs, web

# Seconds after the drain in which clients with an idle connection may send one more request. Its
# response announces that the connection closes.
PART_SECONDS = 1.0


@attrs.define
class Departure:
    """After `begin`, readiness is 503 and each response announces that its connection closes.

    HTTP/1.1 has no other way to announce it. A client that sends while the server closes an idle
    connection cannot know whether the server has read the request.

    Attributes:
        begun: whether the server is about to end.
        dismissed: whether clients that follow a response have to leave.
    """

    begun: bool = False
    dismissed: bool = False
    _followers: int = 0
    _changed: anyio.Event = attrs.field(factory=anyio.Event)

    def begin(self) -> None:
        self.begun = True

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Set `Connection: close`, for `on_response_prepare`.

        aiohttp has already chosen its Connection header by then.
        """
        if self.begun:
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"

    def patience(self) -> float:
        """Return the seconds that open connections get after the drain."""
        return PART_SECONDS if self.begun else 0.0

    @contextmanager
    def follower(self) -> Iterator[None]:
        """Count a client that follows a response, which may be made by another worker."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1
            self._notify()

    def dismiss(self) -> None:
        """Let all followers leave at their next look."""
        self.dismissed = True
        self._notify()

    async def followed(self) -> None:
        """Wait until no client follows a response, or until all are dismissed."""
        while self._followers and not self.dismissed:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
