"""Lifespan runs an async context manager in its own task; any task may start and close it.

A cancel scope must be left by the task that entered it. Fixtures of pytest-asyncio, notebook cells
and exit stacks enter in one task and leave in another. The task's exceptions reach the caller
unchanged, never as a group.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio

from llmserve.runtime.loops import HomeLoop

logger = logging.getLogger(__name__)


def first_of(error: BaseException) -> BaseException:
    """Return the exception, or the first one of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Lifespan:
    """Runs `body()` once, from `start()` to `close()`.

    Args:
        body: `start()` enters it. It is left when `close()` is called or the event loop ends.
        hurry: Called in the event loop if a task that waits for the end is cancelled; the body
            should then end soon.
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
        """Return when the body is entered. If cancelled before that, wait until it has cleaned up.

        Raises:
            RuntimeError: Another task called `close()` before the body was entered.
            Exception: What entering the body raised.
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
        """Return when the body has been left and its task has ended.

        If cancelled, hurry the body and wait for its end. Raises the exception that ended the body,
        once. `quietly` logs it instead; then only a native `task.cancel()` of asyncio interrupts
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
            # The loop is ending, and cancels its tasks.
            if isinstance(error, cancelled):
                raise
            self._error = first_of(error)

    def _end(self) -> None:
        self._settled.set()
        self._ended.set()

    def _raise_error(self) -> None:
        # The error is not kept, because its traceback refers to the engine.
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
