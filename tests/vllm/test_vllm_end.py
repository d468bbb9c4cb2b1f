"""The end of vLLM's client, without an engine."""

import asyncio
import contextlib
import types

import anyio
import pytest
import zmq
import zmq.asyncio

from llmserve.engines.vllm.shutdown import end

pytestmark = pytest.mark.nightly


async def poll(sockets):
    """Wait as vLLM's client of several cores waits for their counts."""
    poller = zmq.asyncio.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    while True:
        await poller.poll()


async def test_sockets_that_vllm_has_not_closed_yet_are_closed_in_their_loop():
    """A regression: vLLM's cleanup after a core's death, in a thread, may be slower than ours.

    Each turn of the loop then raised `Context was terminated`. anyio's plugin fails a test with
    such a callback.
    """
    # As in vLLM's client, whose resources hold the context without asyncio.
    own = zmq.Context()
    context = zmq.asyncio.Context(own)
    sockets = [context.socket(kind) for kind in (zmq.PULL, zmq.ROUTER, zmq.PAIR, zmq.PAIR, zmq.XSUB)]
    for socket in sockets:
        socket.bind(f"inproc://{id(socket)}")
    received = asyncio.ensure_future(sockets[0].recv())
    polled = asyncio.ensure_future(poll(sockets[3:]))
    await anyio.sleep(0.05)
    resources = types.SimpleNamespace(ctx=own, stats_update_task=polled, output_queue_task=received, nothing=None)
    for number, socket in enumerate(sockets):
        setattr(resources, f"socket{number}", socket)
    core = types.SimpleNamespace(resources=resources)
    await end(types.SimpleNamespace(output_handler=None, shutdown=lambda _: None, engine_core=core))
    with anyio.fail_after(10):
        for task in (received, polled):
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert own.closed
