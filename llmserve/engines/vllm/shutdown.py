"""The end of vLLM's AsyncLLM. Written against vLLM 0.25.1, 0.32.0 and 0.33.0."""

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from llmserve.runtime.starting import start_in_thread

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# A core waits 5 s for its workers, tells them to end, and kills them 4 s later (`MultiprocExecutor._ensure_worker_termination`); vLLM's own
# bound for the core is 5 s. On two CPU cores a core takes 4 to 5 s, and 12 s beside other work.
END_SECONDS = 20.0
CONTEXT_SECONDS = 1.0


async def end(llm: "AsyncLLM") -> None:
    """Let its processes end, and close its sockets. A core that takes longer than END_SECONDS is killed."""
    import zmq

    # First, or it logs the engine's end as a failure of its own.
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    await anyio.to_thread.run_sync(llm.shutdown, END_SECONDS)
    # A core's death begins vLLM's own end in a thread, which `shutdown` does not wait for and which closes the sockets last. Those that are
    # open when their context ends raise an error in each turn of the loop. Only the loop may close them.
    for socket in vars(llm.engine_core.resources).values():
        if isinstance(socket, zmq.Socket):
            socket.close(linger=0)
    # vLLM leaves their context, with its threads, to the garbage collector.
    with anyio.move_on_after(CONTEXT_SECONDS):
        await start_in_thread(lambda _: _close_context(llm))


def _close_context(llm: "AsyncLLM") -> None:
    llm.engine_core.resources.ctx.destroy(linger=0)


def discard(llm: "AsyncLLM") -> None:
    """One that no task waits for any more, in the thread that made it: it has no task yet. Its processes have been killed."""
    llm.shutdown()
    _close_context(llm)
