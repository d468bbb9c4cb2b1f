"""Runs a start in a thread, and abandons it on cancellation. Knows no engine.

A thread cannot be cancelled. The operation that it waits for can be ended (`end`), and between its
steps it can ask whether it is still wanted (`check`). A thread that reacts to neither in time is
left alone, and its result is discarded when it comes.
"""

import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")

# A killed core ends vLLM's wait for it within milliseconds. An import of vLLM takes some ten
# seconds and cannot be interrupted.
GIVE_UP_SECONDS = 3.0
# Seconds between two calls of `end`: the thread may start another process after the first call.
END_AGAIN_SECONDS = 0.05
THREAD_NAME = "llmserve start"


class GivenUp(Exception):
    """Ends the thread of a start that is not wanted any more; callers do not see it."""


class _Attempt(Generic[T]):
    def __init__(self, work: Callable[[Callable[[], None]], T], discard: Callable[[T], None]) -> None:
        self._work = work
        self._discard = discard
        self._lock = threading.Lock()
        self._loop = anyio.lowlevel.current_token()
        self._given_up = False
        # Set in the event loop when the thread has nothing left to do.
        self.over = anyio.Event()
        self.results: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._deliver(self._work(self._check))
        except BaseException as error:
            # An error after the start was given up is dropped: its traceback would keep what the
            # thread had made.
            self.error = None if self._given_up else error
        # If the loop has ended, no task waits.
        with suppress(anyio.RunFinishedError):
            anyio.from_thread.run_sync(self.over.set, token=self._loop)

    def _check(self) -> None:
        if self._given_up:
            raise GivenUp

    def _deliver(self, result: T) -> None:
        with self._lock:
            if not self._given_up:
                self.results.append(result)
                return
        self._discard(result)

    def give_up(self) -> list[T]:
        """Give the start up; return the result if it has just come."""
        with self._lock:
            self._given_up = True
            return self.results


async def start_in_thread(
    work: Callable[[Callable[[], None]], T],
    *,
    end: Callable[[], None] = lambda: None,
    discard: Callable[[T], Any] = lambda result: None,
) -> T:
    """Run `work(check)` in a daemon thread, and return or raise what it does.

    On cancellation, `check()` raises in the thread, and `end` is called in the event loop until the
    thread has ended, for at most GIVE_UP_SECONDS. A result that comes anyway is passed to
    `discard`, in a thread.
    """
    attempt = _Attempt(work, discard)
    thread = threading.Thread(target=contextvars.copy_context().run, args=(attempt.run,), name=THREAD_NAME, daemon=True)
    thread.start()
    try:
        await attempt.over.wait()
    except BaseException:
        results = attempt.give_up()
        with anyio.CancelScope(shield=True):
            for result in results:
                await anyio.to_thread.run_sync(discard, result)
            with anyio.move_on_after(GIVE_UP_SECONDS):
                while not attempt.over.is_set():
                    end()
                    with anyio.move_on_after(END_AGAIN_SECONDS):
                        await attempt.over.wait()
                thread.join()
        raise
    # Join the thread now, because `left_alone` may be called at any moment.
    thread.join()
    if attempt.error is not None:
        raise attempt.error
    # The result is not kept: a module that the thread imported may hold an error whose traceback
    # refers to the attempt.
    return attempt.results.pop()


def left_alone() -> bool:
    """Whether an abandoned start's thread still runs, which prevents a clean exit."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())
