"""The event stream under a server that does not cancel its handlers, unlike llmserve's."""

import time

import aiohttp
import anyio
import pytest
from aiohttp import web
from engines import ScriptedEngine

from frontends.http.app import build_app
from llmserve import Delta, EngineManager, ManagerConfig


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_a_client_that_disconnects_while_paused_ends_its_handler_without_cancellation():
    """A regression: a lost connection stays paused, so waiting for its drain ended immediately."""
    engine = ScriptedEngine()
    async with EngineManager(engine, ManagerConfig(drain_timeout=1)) as manager:
        runner = web.AppRunner(build_app(manager, "sim"), handler_cancellation=False, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}", read_bufsize=1024) as session:
                response = await session.post("/v1/completions", json={"prompt": "hi", "max_tokens": 50, "stream": True})
                (sink,) = engine.sinks.values()
                (connection,) = runner.server.connections
                with anyio.fail_after(10):
                    while not connection.writing_paused:
                        sink.put(Delta("x" * 65536, (1,)))
                        await anyio.sleep(0.001)
                # The state after the client has closed the connection normally.
                connection.transport.abort()
                response.close()
            left = time.monotonic()
            with anyio.fail_after(10):
                while manager.statistics().open:
                    sink.put(Delta("more", (1,)))
                    await anyio.sleep(0.001)
            # A handler in an endless loop would block everything, including the time limit above.
            # The test's alarm would end it.
            assert time.monotonic() - left < 10
        finally:
            await runner.cleanup()
