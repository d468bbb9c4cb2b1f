"""How one reader sleeps until there is something to read, and is woken. A token costs one of these, so it is done without ceremony.

On asyncio a reader awaits a bare future; anyio's event would be made anew for every token, find out each time which loop runs, and hold
an asyncio event that holds a future (docs/performance.md has the figures). Elsewhere it is anyio's event.
"""

import asyncio
from collections.abc import Awaitable
from typing import Protocol

import anyio
import sniffio


class Wakeup(Protocol):
    """For one sleeper at a time."""

    def sleep(self) -> Awaitable[object]:
        """To be awaited at once; ends with the next `wake`."""

    def wake(self) -> None:
        """Wake whoever sleeps, if anyone does."""


def make_wakeup() -> Wakeup:
    """For the event loop that runs now."""
    return FutureWakeup() if sniffio.current_async_library() == "asyncio" else EventWakeup()


class FutureWakeup:
    """On asyncio."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    def sleep(self) -> Awaitable[object]:
        self._future = self._loop.create_future()
        return self._future

    def wake(self) -> None:
        future, self._future = self._future, None
        # Done already where the sleeper was cancelled.
        if future is not None and not future.done():
            future.set_result(None)


class EventWakeup:
    """On any backend of anyio's."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def sleep(self) -> Awaitable[object]:
        self._event = anyio.Event()
        return self._event.wait()

    def wake(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.set()
