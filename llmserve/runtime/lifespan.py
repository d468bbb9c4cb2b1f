"""Lifespan: an async context manager whose inside runs in a task of its own, so that one task may start it and another one close it.

A cancel scope has to be left by the task that entered it. Fixtures of pytest-asyncio, cells of a notebook and exit stacks enter in one task
and leave in another. The task's exceptions reach the caller as they are, never as a group.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio

from llmserve.runtime.loops import HomeLoop

logger = logging.getLogger(__name__)


def first_of(error: BaseException) -> BaseException:
    """The exception itself, or the first one of a task group's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Lifespan:
    """Runs the inside of `body()` from `start()` to `close()`, once.

    Args:
        body: what is entered by `start()`, and left when `close()` is called or the event loop ends.
        hurry: called in the event loop when a task that waits for the end is cancelled; the body should then end soon.
    """

    def __init__(self, body: Callable[[], AbstractAsyncContextManager[object]], hurry: Callable[[], None]) -> None:
        self._body = body
        self._hurry = hurry
        self.home = HomeLoop()
        self._scope = anyio.CancelScope()
        self._stop = anyio.Event()
        self._settled = anyio.Event()
        self._ended = anyio.Event()
        self._entered = False
        self._error: BaseException | None = None

    async def start(self) -> None:
        """Returns when the body is entered; cancelled before that, it waits until the body has cleaned up.

        Raises:
            RuntimeError: another task called `close()` before the body was entered.
            Exception: what entering the body raised.
        """
        self.home.spawn(self._run, "llmserve manager", self._end)
        try:
            await self._settled.wait()
        except BaseException:
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._ended.wait()
            self._log_error()
            raise
        if not self._entered:
            self._raise_error()
            raise RuntimeError("the manager was closed while it was starting; make another one")

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    async def close(self, *, quietly: bool = False) -> None:
        """Returns when the body has been left and its task has ended. Cancelled, it lets the body hurry, and waits for that end.

        Raises the exception that ended the body, once; `quietly` logs it instead, and only a native `task.cancel()` of asyncio interrupts
        the wait.
        """
        self._stop.set()
        if not self._entered:
            self._scope.cancel()
        try:
            with anyio.CancelScope(shield=quietly):
                await self._ended.wait()
        except BaseException:
            self._hurry()
            with anyio.CancelScope(shield=True):
                await self._ended.wait()
            self._log_error()
            raise
        if quietly:
            self._log_error()
        elif self._entered:
            self._raise_error()

    async def _run(self) -> None:
        cancelled = anyio.get_cancelled_exc_class()
        try:
            with self._scope:
                async with self._body():
                    self._entered = True
                    self._settled.set()
                    await self._stop.wait()
        except BaseException as error:
            # The loop ends, and cancels its tasks.
            if isinstance(error, cancelled):
                raise
            self._error = first_of(error)

    def _end(self) -> None:
        self._settled.set()
        self._ended.set()

    def _raise_error(self) -> None:
        # Not kept: its traceback refers to the engine.
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    def _log_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            logger.error("the manager ended with an error", exc_info=error)
