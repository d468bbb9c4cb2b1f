"""The routes for orchestrators and load balancers: health, /version, /ping and /load.

Names and formats are those of vLLM and SGLang.
"""

import msgspec
from aiohttp import web

from frontends.access.control import Access
from frontends.http.departure import Departure
from frontends.http.health import GenerateCheck, GetMetrics, waiting
from frontends.http.request_checks import Handler
from frontends.http.responses import json_response
from llmserve import EngineDead, EngineManager, LLMServeError, State, Unavailable
from llmserve.state import unavailable


class Version(msgspec.Struct):
    """The answer to GET /version: the engine's version, as in vLLM.

    llmserve's version is in the metric `llmserve_build_info`.
    """

    version: str


class ServerLoad(msgspec.Struct):
    """The answer to GET /load.

    `server_load` counts open requests, as in vLLM. `limit` is None where admission has no fixed
    limit.
    """

    server_load: int
    running: int
    waiting: int
    limit: int | None


class Checked(msgspec.Struct):
    """The answer to GET /health/generate."""

    status: str = "generates"


class HealthRoutes:
    """The handlers. Without `check` there is no /health/generate."""

    def __init__(
        self, manager: EngineManager, access: Access, departure: Departure, metrics: GetMetrics, check: GenerateCheck | None
    ) -> None:
        self._manager = manager
        self._access = access
        self._departure = departure
        self._metrics = metrics
        self._check = check

    def routes(self) -> dict[str, Handler]:
        ready = dict.fromkeys(("GET /health", "GET /health/ready", "GET /ping", "POST /ping"), self.ready)
        # The second name is SGLang's.
        checks = dict.fromkeys(("GET /health/generate", "GET /health_generate"), self.generates) if self._check else {}
        return {**ready, **checks, "GET /health/live": self.live, "GET /version": self.version, "GET /load": self.load}

    async def live(self, request: web.Request) -> web.Response:
        if self._manager.state == "failed":
            self._check_health()
        return json_response({"status": "live", "state": self._manager.state})

    async def ready(self, request: web.Request) -> web.Response:
        if self._departure.begun:
            raise unavailable(State.DRAINING)
        self._check_health()
        return json_response({"status": "ready", "state": self._manager.state})

    def _check_health(self) -> None:
        """Check the manager's health.

        Probes need no key. If other clients do, the response has no details of a failure.
        """
        try:
            self._manager.check_health()
        except LLMServeError as error:
            if self._access.keys is None:
                raise
            if isinstance(error, Unavailable):
                raise Unavailable("the server does not accept requests now", retry_after=error.retry_after, reason=error.reason) from None
            raise EngineDead("the engine has failed") from None

    async def generates(self, request: web.Request) -> web.Response:
        assert self._check is not None
        await self._check()
        return json_response(Checked())

    async def version(self, request: web.Request) -> web.Response:
        try:
            found = self._manager.info.version
        except RuntimeError:
            # The engine has not started yet.
            self._manager.check_health()
            raise
        return json_response(Version(found))

    async def load(self, request: web.Request) -> web.Response:
        found = (await self._metrics()).statistics
        limit = None if found.admission is None else found.admission.limit
        return json_response(ServerLoad(found.open, found.running, waiting(found), limit))
