"""The HTTP server of an ingress: the clients' side, with the limits and checks of a server without Ray."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from frontends.cluster.intake import Intake
from frontends.cluster.relay import RelayedRequest
from frontends.cluster.replica_client import Answer
from frontends.cluster.settings import ClusterServerSettings, ClusterSettings
from frontends.http.departure import Departure
from frontends.http.errors import error_response
from frontends.http.host_names import answer_to
from frontends.http.request_checks import BUDGET, Handler, check_form, expect_later, take
from frontends.http.server import running
from frontends.http.settings import HTTPSettings
from frontends.logs.operator_log import say
from frontends.net.acceptor import listen
from frontends.net.connection_limits import ConnectionLimiter, spare_descriptors
from frontends.net.listeners import CannotListen, authority, bind_all
from frontends.net.tls import followed
from frontends.openai.errors import HTTPFailure
from llmserve import ConfigurationError, LLMServeError, Unavailable
from llmserve.admission import Refusal
from llmserve.admission.retry_after import RETRY_AFTER

LOOK_SECONDS = 0.2
Ask = Callable[[RelayedRequest], Awaitable[Answer]]


async def open_listeners(settings: ClusterSettings, patience: float) -> list[socket.socket]:
    """Listen on the hosts and the port, which may be in use for `patience` seconds. Raises ConfigurationError.

    The ingresses of one host share the port. A single one does not: with the port of another
    application, each would get a part of the other's clients.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return bind_all(settings.hosts, settings.port, share=settings.ingresses > 1)
        except CannotListen as error:
            if time.monotonic() > deadline or not error.in_use:
                raise ConfigurationError(f"--port: cannot listen on {error}") from error
        await asyncio.sleep(LOOK_SECONDS)


class IngressServer:
    """The server.

    Args:
        settings: the settings of the application.
        intake: checks the requests.
        ask: returns a replica's answer; raises LLMServeError.
    """

    def __init__(self, settings: ClusterServerSettings, intake: Intake, ask: Ask) -> None:
        self._access = settings.access
        self._intake = intake
        self._ask = ask
        self._departure = Departure()
        self._open = 0
        self._empty = asyncio.Event()
        names = HTTPSettings(hosts=settings.cluster.hosts).host_names(authenticated=intake.asks_for_keys)
        self._app = web.Application(middlewares=[self._answer_errors, check_form, answer_to(names)])
        self._app[BUDGET] = intake.budget
        self._app.router.add_route("*", "/{path:.*}", self._handle, expect_handler=expect_later)
        self._app.on_response_prepare.append(self._departure.sign)

    @asynccontextmanager
    async def serving(self, listeners: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Serve HTTP on listening sockets, which are closed at the end. Raises ConfigurationError."""
        # Each open request has a connection to a replica too.
        most = min(self._access.max_connections or spare_descriptors(), spare_descriptors() // 2)
        limiter, tls = ConnectionLimiter(most, self._access.max_peer_connections), self._access.open_tls()
        async with (
            running(self._app, limiter, tls) as acceptor,
            listen(acceptor, *listeners, patience=self._departure.patience),
            followed(tls),
        ):
            for listener in listeners:
                say(f"listening {'http' if tls is None else 'https'}://{authority(*listener.getsockname()[:2])}")
            yield

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait until the open ones have ended, for `seconds` at most."""
        self._departure.begin()
        self._empty.clear()
        if self._open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._open += 1
        try:
            if self._departure.begun:
                raise Unavailable("this ingress is stopping", retry_after=RETRY_AFTER["draining"], reason=Refusal.DRAINING)
            return await handler(request)
        except LLMServeError as error:
            return error_response(error, request.path)
        except web.HTTPException as error:
            return error_response(HTTPFailure(error.status, error.reason, "http_error"), request.path)
        finally:
            self._open -= 1
            if not self._open:
                self._empty.set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = self._intake.check(request.raw_path, request.raw_headers)
        answer = await self._ask(RelayedRequest(request.method, request.raw_path, headers, await take(request)))
        if not answer.head.is_events:
            return web.Response(body=answer.body, status=answer.head.status, headers=answer.head.headers)
        response = web.StreamResponse(status=answer.head.status, headers=answer.head.headers)
        await response.prepare(request)
        async for chunk in answer.events():
            await response.write(chunk)
        await response.write_eof()
        return response
