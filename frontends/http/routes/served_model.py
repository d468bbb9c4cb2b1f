"""The served model, for handlers of HTTP requests."""

from collections.abc import Callable

from aiohttp import web

from frontends.answers.served_model import Body, Made
from frontends.answers.served_model import ServedModel as Answering
from frontends.http.request_checks import take
from frontends.openai.decoding import BodyReader


class ServedModel(Answering):
    """A manager's model under the name that clients use, which reads the bodies of HTTP requests."""

    async def read(self, request: web.Request, reader: BodyReader[Body], make: Callable[[Body], Made]) -> Made:
        """Return what `make` builds from the request's body; nothing keeps the body."""
        return await self.decode(await take(request), reader, make)
