"""What a manager takes from its event loop: the time, and tasks."""

import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import sniffio


class ManagerLoop:
    """A clock, and a task group once the manager has started.

    `now` returns monotonic seconds; `clock` replaces the event loop's own.
    """

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self.now = clock or anyio.current_time

    def bind(self, tasks: anyio.abc.TaskGroup) -> None:
        """Use the event loop that runs now, and `tasks` for what is spawned."""
        self._tasks = tasks
        # Callbacks of the event loop may cancel a token, and there only this context shows anyio
        # its backend.
        self._context = contextvars.copy_context()
        self._context.run(sniffio.current_async_library_cvar.set, sniffio.current_async_library())
        if self.now is anyio.current_time:
            # The loop's own method, where it has one (asyncio does): a call through anyio costs a
            # microsecond for every token.
            self.now = getattr(anyio.lowlevel.current_token().native_token, "time", anyio.current_time)

    def time(self) -> float:
        """Return `now()`, for those that keep the function from before the start."""
        return self.now()

    def spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a coroutine in a task of the manager."""
        self._context.run(self._tasks.start_soon, work, *args)
