"""The HTTP server of an ingress: the clients' side, with the same limits as a server without Ray."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from frontends.access.settings import AccessSettings
from frontends.cluster.intake import Intake, of_aiohttp
from frontends.cluster.relay import RelayedRequest
from frontends.cluster.replica_client import Answer
from frontends.cluster.settings import ClusterSettings
from frontends.http.departure import Departure
from frontends.http.errors import described
from frontends.http.responses import json_response
from frontends.http.server import running
from frontends.logs.operator_log import say
from frontends.net.acceptor import listen
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.listeners import CannotListen, authority, bind_all
from frontends.net.tls import followed
from llmserve import ConfigurationError, LLMServeError

LOOK_SECONDS = 0.2


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


@asynccontextmanager
async def relaying(
    access: AccessSettings,
    listeners: Sequence[socket.socket],
    intake: Intake,
    ask: Callable[[RelayedRequest], Awaitable[Answer]],
    departure: Departure,
) -> AsyncIterator[None]:
    """Serve HTTP on the listeners. Raises ConfigurationError.

    Args:
        access: the limits on connections, and the certificates.
        listeners: listening sockets, which are closed at the end.
        intake: reads and checks the requests.
        ask: returns a replica's answer; raises LLMServeError.
        departure: begins when the ingress is about to end.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            answer = await ask(await intake.read(*of_aiohttp(request)))
        except LLMServeError as error:
            status, body, headers = described(error, request.path)
            return json_response(body, status, headers)
        return await _send(request, answer)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    app.on_response_prepare.append(departure.sign)
    limiter, tls = ConnectionLimiter(access.max_connections, access.max_peer_connections), access.open_tls()
    async with running(app, limiter, tls) as acceptor, listen(acceptor, *listeners, patience=departure.patience), followed(tls, quiet=True):
        for listener in listeners:
            say(f"listening {'http' if tls is None else 'https'}://{authority(*listener.getsockname()[:2])}")
        yield


async def _send(request: web.Request, answer: Answer) -> web.StreamResponse:
    if not answer.head.is_events:
        return web.Response(body=answer.body, status=answer.head.status, headers=answer.head.headers)
    response = web.StreamResponse(status=answer.head.status, headers=answer.head.headers)
    await response.prepare(request)
    async for chunk in answer.events():
        await response.write(chunk)
    await response.write_eof()
    return response
