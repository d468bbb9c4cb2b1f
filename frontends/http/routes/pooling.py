"""The routes that answer with vectors."""

from functools import partial

from aiohttp import web

from frontends.answers.vectors import Vectors
from frontends.http.access_log import name_answer
from frontends.http.authentication import CALLER
from frontends.http.request_checks import Handler, take
from frontends.http.responses import whole_response
from frontends.http.routes.served_model import ServedModel


class PoolingRoutes:
    """The handlers."""

    def __init__(self, served: ServedModel) -> None:
        self._vectors = Vectors(served)

    def routes(self) -> dict[str, Handler]:
        return {f"POST {path}": partial(self._answer, path) for path in Vectors.kinds}

    async def _answer(self, path: str, request: web.Request) -> web.StreamResponse:
        wanted = await self._vectors.parse(path, await take(request), request[CALLER])
        name_answer(request, wanted.id)
        return await whole_response(await self._vectors.whole(wanted))
