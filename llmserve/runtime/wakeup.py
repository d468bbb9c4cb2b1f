"""How one reader sleeps until there is something to read, and is woken. A token costs one of these, so it is done without ceremony.

On asyncio a reader awaits a bare future; anyio's event would be made anew for every token, find out each time which loop runs, and hold
an asyncio event that holds a future (docs/performance.md has the figures). Elsewhere it is anyio's event.
"""

import asyncio
from collections.abc import Awaitable
from threading import get_ident
from typing import Protocol

import anyio
import sniffio

from llmserve.runtime.loops import HomeLoop


class Wakeup(Protocol):
    """For one sleeper at a time."""

    def require_reader(self) -> None:
        """Raises RuntimeError where another task sleeps here, or another event loop runs."""

    def sleep(self) -> Awaitable[object]:
        """To be awaited at once; ends with the next `wake`. Raises as `require_reader`, here or when it is awaited."""

    def wake(self) -> None:
        """Wake the task that sleeps, if one does."""


def make_wakeup() -> Wakeup:
    """For the event loop that runs now."""
    return FutureWakeup() if sniffio.current_async_library() == "asyncio" else EventWakeup()


def _second_reader() -> RuntimeError:
    return RuntimeError("another task reads this stream: a stream has one reader, so let one task read it and pass on what it reads")


class FutureWakeup:
    """On asyncio."""

    __slots__ = ("_future", "_home", "_loop", "_thread")

    def __init__(self) -> None:
        self._home = HomeLoop()
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._future: asyncio.Future[None] | None = None

    def require_reader(self) -> None:
        self._home.require("stream")
        # Done where the sleeper was cancelled.
        if self._future is not None and not self._future.done():
            raise _second_reader()

    def sleep(self) -> Awaitable[object]:
        # For every token, so the whole check is for the first one in a thread: it asks for the running loop, a system call in Python 3.11.
        if self._future is not None or get_ident() != self._thread:
            self.require_reader()
            self._thread = get_ident()
        self._future = self._loop.create_future()
        return self._future

    def wake(self) -> None:
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(None)


class EventWakeup:
    """On any backend of anyio's."""

    __slots__ = ("_event", "_home")

    def __init__(self) -> None:
        self._home = HomeLoop()
        self._event: anyio.Event | None = None

    def require_reader(self) -> None:
        self._home.require("stream")
        if self._event is not None:
            raise _second_reader()

    async def sleep(self) -> None:
        self.require_reader()
        event = self._event = anyio.Event()
        try:
            await event.wait()
        finally:
            if self._event is event:
                self._event = None

    def wake(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.set()
