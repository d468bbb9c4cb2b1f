"""The event stream where no server of ours would bring it: a host that does not cancel its handlers."""

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


async def test_a_client_that_goes_while_it_is_paused_ends_its_handler_also_where_none_is_cancelled():
    """A regression, found by reading: a lost connection stays paused, and waiting for it to be drained ended at once, again and again."""
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
                # As it looks when the client has closed it in good order.
                connection.transport.abort()
                response.close()
            left = time.monotonic()
            with anyio.fail_after(10):
                while manager.statistics().open:
                    sink.put(Delta("more", (1,)))
                    await anyio.sleep(0.001)
            # The handler that turned for ever let nothing else run, the deadline above included; what ends it is the test's own alarm.
            assert time.monotonic() - left < 10
        finally:
            await runner.cleanup()
