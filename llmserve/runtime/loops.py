"""The event loop that an object belongs to: a check of its use, and tasks that belong to the loop.

anyio offers neither. The tasks of a task group end with the task that opened the group, and an
anyio event that another thread sets wakes no task.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import sniffio

# asyncio itself holds only weak references to its tasks.
_tasks: set[asyncio.Task[None]] = set()


class HomeLoop:
    """The event loop, of asyncio or trio, in which this object is created."""

    __slots__ = ("_loop", "_running")

    def __init__(self) -> None:
        self._running: Callable[[], object]
        if sniffio.current_async_library() == "asyncio":
            self._running = asyncio.get_running_loop
        else:
            import trio

            self._running = trio.lowlevel.current_trio_token
        self._loop = self._running()

    @property
    def runs_here(self) -> bool:
        """Whether the caller runs in this loop."""
        try:
            return self._running() is self._loop
        except RuntimeError:
            # No loop runs in this thread.
            return False

    def require(self, thing: str) -> None:
        """Raise RuntimeError in another event loop or thread; `thing` names the object in use."""
        if not self.runs_here:
            raise RuntimeError(
                f"this {thing} belongs to another event loop: use it in the loop that started the manager (from another thread by "
                "asyncio.run_coroutine_threadsafe or trio.from_thread.run), or start a manager in this loop"
            )

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str, ended: Callable[[], None]) -> None:
        """Run `work` in a task of the loop, with the caller's context variables, then call `ended`.

        The loop cancels the task when the loop's main task ends. `ended` is called even if that
        happens before the task's first step.
        """
        if self._running is asyncio.get_running_loop:
            task = asyncio.create_task(work(), name=name)
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)
            task.add_done_callback(lambda _: ended())
            return
        import trio

        async def run() -> None:
            try:
                await work()
            finally:
                ended()

        trio.lowlevel.spawn_system_task(run, name=name, context=contextvars.copy_context())
