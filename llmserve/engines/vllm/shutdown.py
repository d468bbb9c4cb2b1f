"""Ends vLLM's AsyncLLM. Written against vLLM 0.25.1, 0.32.0 and 0.33.0."""

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from llmserve.runtime.starting import start_in_thread

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# A core waits 5 s for its workers, asks them to end, and kills them 4 s later
# (`MultiprocExecutor._ensure_worker_termination`). vLLM's own limit for the core is 5 s. On two CPU
# cores a core takes 4 to 5 s, and 12 s beside other work.
END_SECONDS = 20.0
CONTEXT_SECONDS = 1.0


async def end(llm: "AsyncLLM") -> None:
    """End the engine's processes and close its sockets. A core is killed after END_SECONDS."""
    import zmq

    # Cancel the handler first, or it logs the engine's end as a failure.
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    await anyio.to_thread.run_sync(llm.shutdown, END_SECONDS)
    # A core's death starts vLLM's own cleanup in a thread, which closes the sockets last and for
    # which `shutdown` does not wait. A socket that is open when its context ends raises an error in
    # each turn of the loop. Only the loop may close the sockets.
    for socket in vars(llm.engine_core.resources).values():
        if isinstance(socket, zmq.Socket):
            socket.close(linger=0)
    # vLLM leaves the sockets' context, with its threads, to the garbage collector.
    with anyio.move_on_after(CONTEXT_SECONDS):
        await start_in_thread(lambda _: _close_context(llm))


def _close_context(llm: "AsyncLLM") -> None:
    llm.engine_core.resources.ctx.destroy(linger=0)


def discard(llm: "AsyncLLM") -> None:
    """Discard an engine that no task waits for, in the thread that made it.

    It has no task yet, and its processes have been killed.
    """
    llm.shutdown()
    _close_context(llm)
