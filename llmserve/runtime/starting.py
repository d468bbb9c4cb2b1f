"""Runs a start in a thread, and gives it up when it is cancelled. Knows no engine.

A thread cannot be cancelled. What it waits for can be ended (`end`), and between its steps it can ask whether it is still wanted
(`check`). A thread that notices neither in time is left alone, and its result is discarded when it comes.
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

# A core that was killed ends vLLM's wait for it within milliseconds; importing vLLM takes some ten seconds, and cannot be interrupted.
GIVE_UP_SECONDS = 3.0
# How often `end` is called meanwhile: the thread may start another process after the first call.
END_AGAIN_SECONDS = 0.05
THREAD_NAME = "llmserve start"


class GivenUp(Exception):
    """Ends the thread of a start that is not wanted any more; no caller sees it."""


class _Attempt(Generic[T]):
    def __init__(self, work: Callable[[Callable[[], None]], T], discard: Callable[[T], None]) -> None:
        self._work = work
        self._discard = discard
        self._lock = threading.Lock()
        self._loop = anyio.lowlevel.current_token()
        self._given_up = False
        # In the event loop: the thread has nothing left to do.
        self.over = anyio.Event()
        self.results: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._deliver(self._work(self._check))
        except BaseException as error:
            # Not kept where no caller asks for it: its traceback keeps what the thread had made.
            self.error = None if self._given_up else error
        # When the loop is gone, no task waits.
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
        """Returns the result, if it has just come."""
        with self._lock:
            self._given_up = True
            return self.results


async def start_in_thread(
    work: Callable[[Callable[[], None]], T],
    *,
    end: Callable[[], None] = lambda: None,
    discard: Callable[[T], Any] = lambda result: None,
) -> T:
    """What `work(check)` returns or raises, from a daemon thread.

    When this is cancelled, `check()` raises in the thread from then on, and `end` is called in the event loop until the thread has ended,
    at most GIVE_UP_SECONDS. A result that comes all the same is passed to `discard`, in a thread.
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
    # Now, and not a moment later: `left_alone` is asked.
    thread.join()
    if attempt.error is not None:
        raise attempt.error
    # Not kept: some module that is imported in the thread may hold an error, and by its traceback the attempt.
    return attempt.results.pop()


def left_alone() -> bool:
    """Whether the thread of a start that was given up still runs: then the interpreter cannot end in order."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())
