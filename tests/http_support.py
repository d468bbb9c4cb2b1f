"""A real server on a real port, and clients for the frontend contract.

aiohttp's own test server differs from a real one in the most important point: by default it cancels
handlers.
"""

import io
from contextlib import asynccontextmanager

import aiohttp
import attrs
import msgspec

from frontends.http.app import build_app
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from llmserve import (
    DeadlineExceeded,
    EngineManager,
    GenerationRequest,
    InvalidRequest,
    LLMServeError,
    ManagerConfig,
    PromptTooLong,
    Sampling,
)
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine


class Server:
    """A running server: its manager, and a client session whose paths are relative to it."""

    def __init__(self, manager, url, session):
        self.manager = manager
        self.url = url
        self.session = session

    async def post(self, path, body, **more):
        """Return the status, the decoded body and the headers."""
        kind = {"data": io.BytesIO(body), "headers": {"Content-Type": "application/json"}} if isinstance(body, bytes) else {"json": body}
        async with self.session.post(path, **kind, **more) as response:
            return response.status, await response.json(), response.headers


@asynccontextmanager
async def running_server(engine=None, config=None, app=None, limiter=None, tls=None, tracer=None, app_of=None, **simulated):
    """Run a server. `app` are arguments of `build_app`; `app_of` makes more from the manager."""
    # On a busy machine tokens would be merged, and tests that count events would fail.
    app = {"max_hold": 0.0, **(app or {})}
    engine = engine or SimulatedEngine(SimulatedConfig(**{"time_scale": 0.0, **simulated}), model="sim")
    async with EngineManager(engine, config or ManagerConfig(drain_timeout=1), tracer=tracer) as manager:
        app |= app_of(manager) if app_of else {}
        listener = bind("127.0.0.1", 0)
        async with running(build_app(manager, "sim", **app), limiter, tls) as acceptor, listen(acceptor, listener):
            url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
            async with aiohttp.ClientSession(url) as session:
                yield Server(manager, url, session)


SAMPLING = {field.name for field in attrs.fields(Sampling)}


def request(**fields):
    sampling = Sampling(**{name: value for name, value in fields.items() if name in SAMPLING})
    return GenerationRequest(**{name: value for name, value in fields.items() if name not in SAMPLING}, sampling=sampling)


class InProcess:
    """Uses the manager itself."""

    def __init__(self, manager):
        self.manager = manager
        self.request = request

    @asynccontextmanager
    async def stream(self, **fields):
        async with self.manager.stream(request(**fields)) as stream:
            yield (delta.text async for delta in stream)


class OverHTTP:
    """Sends POST /generate and reads the events."""

    def __init__(self, server):
        self.manager = server.manager
        self.request = request
        self._session = server.session

    @asynccontextmanager
    async def stream(self, **fields):
        async with self._session.post("/generate", json={**fields, "stream": True}) as response:
            if response.status != 200:
                raise to_error((await response.json())["error"])
            yield self._texts(response)

    async def _texts(self, response):
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = msgspec.json.decode(line.removeprefix(b"data: "))
            if "error" in event:
                raise to_error(event["error"])
            if "text" in event:
                yield event["text"]


def to_error(error):
    """Convert the error object back to the exception from which it was made."""
    match error["code"], error["type"]:
        case "context_length_exceeded", _:
            return PromptTooLong(0, 0)
        case "deadline_exceeded", _:
            return DeadlineExceeded(0)
        case _, "invalid_request_error":
            return InvalidRequest(error["message"], error["param"])
    return LLMServeError(error["message"])
