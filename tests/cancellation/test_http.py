"""Cancellation, a lost client and a dead engine at every suspension point of the HTTP handlers."""

import asyncio
import itertools

import aiohttp
import anyio
import pytest
from aiohttp import web
from cancellation.interrupt import Reached, interrupted
from quiescence import Audit, AuditedEngine, check_quiescent

from frontends.http.app import build_app
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from llmserve import AdmissionConfig, EngineManager, ManagerConfig, RestartConfig
from llmserve.engines.simulated.engine import SimulatedConfig

pytestmark = pytest.mark.anyio

BODIES = {
    "whole": ("/v1/completions", {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}),
    "streamed": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "stream": True}),
    "four, whole": ("/v1/completions", {"prompt": "hello", "max_tokens": 3, "n": 4}),
    "four, streamed": ("/v1/completions", {"prompt": "hello", "max_tokens": 3, "n": 4, "stream": True}),
    "generate": ("/generate", {"prompt": "hello", "max_tokens": 3, "stream": True}),
    "response": ("/v1/responses", {"input": "hello", "max_output_tokens": 3}),
    "response, streamed": ("/v1/responses", {"input": "hello", "max_output_tokens": 3, "stream": True}),
    "response in the background": ("/v1/responses", {"input": "hello", "max_output_tokens": 3, "background": True}),
}


@pytest.fixture
def anyio_backend():
    return "asyncio"


def cancelled(rig):
    rig.handler.cancel()


def client_gone(rig):
    rig.request.transport.abort()


def engine_died(rig):
    rig.manager.engine.kill()


class Rig:
    """A server whose next request is interrupted."""

    def __init__(self, manager):
        self.manager = manager
        self.points = set()
        self.app = build_app(manager, "sim")
        self.app.middlewares.insert(0, self._middleware)
        self._middleware_fault = None

    @property
    def _middleware(self):
        @web.middleware
        async def interrupt(request, handler):
            self.request, self.handler = request, asyncio.current_task()
            response, _ = await interrupted(handler(request), self.points, self.reached)
            return response

        return interrupt

    async def ask(self, session, path, body, point, fault):
        """Return whether the handler had such a suspension point."""
        self.points, self.reached = {point}, Reached(lambda: fault(self))
        try:
            async with session.post(path, json=body) as response:
                text = await response.text()
                if fault is engine_died and response.status == 200 and "data:" in text:
                    # The client gets an answer or an error event, never silence.
                    assert any(end in text for end in ("[DONE]", "engine_restarted", "event: response.incomplete"))
        except aiohttp.ClientError:
            assert fault is not engine_died
        return self.reached.times > 0

    async def settled(self):
        with anyio.fail_after(10):
            while self.manager.statistics().open or self.manager.state == "restarting":
                await anyio.sleep(0.001)


@pytest.mark.parametrize("fault", [cancelled, client_gone, engine_died])
@pytest.mark.parametrize("kind", BODIES)
async def test_at_every_suspension(kind, fault):
    engine, audit = AuditedEngine(SimulatedConfig(time_scale=0.1, abort_seconds=0.01)), Audit()
    config = ManagerConfig(
        admission=AdmissionConfig(max_running=4), restart=RestartConfig(most=1000, first_pause=0.001, longest_pause=0.001), drain_timeout=5
    )
    async with EngineManager(engine, config, [audit]) as manager:
        rig = Rig(manager)
        listener = bind("127.0.0.1", 0)
        async with running(rig.app) as acceptor, listen(acceptor, listener):
            async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.getsockname()[1]}") as session:
                for point in itertools.count(1):
                    if not await rig.ask(session, *BODIES[kind], point, fault):
                        break
                    await rig.settled()
                    check_quiescent(manager, audit)
                assert point >= 2
                rig.points = set()
                async with session.post("/generate", json={"prompt": "after", "max_tokens": 2}) as response:
                    assert response.status == 200
            await rig.settled()
            check_quiescent(manager, audit)
