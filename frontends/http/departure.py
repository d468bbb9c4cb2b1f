"""How a server parts from its clients after SIGTERM, so that none of them loses a request to a connection that closes under it."""

import attrs
from aiohttp import hdrs, web

# Seconds, after the drain, for clients with an idle connection to ask once more and to read in the answer that it closes.
PART_SECONDS = 1.0


@attrs.define
class Departure:
    """From `begin` on readiness is 503, and each answer says that its connection closes. HTTP/1.1 has no other way to say it: a client
    that sends while the server closes an idle connection cannot know whether the server has read the request."""

    begun: bool = False

    def begin(self) -> None:
        self.begun = True

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """For `on_response_prepare`, where aiohttp has already chosen the header that it would send."""
        if self.begun:
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"

    def patience(self) -> float:
        """Seconds for connections that are still open after the drain."""
        return PART_SECONDS if self.begun else 0.0
