"""Closing client connections after SIGTERM, so that no client loses a request to a closed one."""

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
    """

    begun: bool = False

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
