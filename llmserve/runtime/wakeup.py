"""How a stream's one reader sleeps and wakes. Every token costs one wakeup, so this must be cheap.

On asyncio a reader awaits a bare future. anyio's event would be created for every token, detect the
loop each time, and hold an asyncio event with a future (figures in docs/performance.md). On other
backends anyio's event is used.
"""

import asyncio
from collections.abc import Awaitable
from threading import get_ident
from typing import Protocol

import anyio
import sniffio

from llmserve.runtime.loops import HomeLoop


class Wakeup(Protocol):
    """Lets one task at a time sleep."""

    def require_reader(self) -> None:
        """Raise RuntimeError if another task sleeps here, or in another event loop."""

    def sleep(self) -> Awaitable[object]:
        """Sleep until the next `wake`; await it at once. Raises what `require_reader` raises."""

    def wake(self) -> None:
        """Wake the sleeping task, if there is one."""


def make_wakeup() -> Wakeup:
    """Make a wakeup for the running event loop."""
    return FutureWakeup() if sniffio.current_async_library() == "asyncio" else EventWakeup()


def _second_reader() -> RuntimeError:
    return RuntimeError("another task reads this stream: a stream has one reader, which may pass on what it reads to other tasks")


class FutureWakeup:
    """A wakeup for asyncio."""

    __slots__ = ("_future", "_home", "_loop", "_thread")

    def __init__(self) -> None:
        self._home = HomeLoop()
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._future: asyncio.Future[None] | None = None

    def require_reader(self) -> None:
        self._home.require("stream")
        # The future is done if the sleeper was cancelled.
        if self._future is not None and not self._future.done():
            raise _second_reader()

    def sleep(self) -> Awaitable[object]:
        # This runs for every token, so the full check runs only once per thread: in Python 3.11
        # asking for the running loop is a system call.
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
    """A wakeup for any backend of anyio."""

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
