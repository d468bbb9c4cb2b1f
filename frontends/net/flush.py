"""Schedules the writes of all connections after each engine step, and less often under overload.

A write costs a system call and a wake-up of the client: 5 to 20 us of this process, regardless of
its size. While the event loop keeps up, every connection writes after every step. When the loop is
busy nearly all of the time, connections hold tokens back for some milliseconds. One write then
carries the tokens of several steps. A stream's first tokens and its end are never held back.
"""

import asyncio
import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Maximum seconds that a token is held back. The measured gaps between a stream's events grow by up
# to a few milliseconds more.
MAX_HOLD = 0.015
# The first hold in seconds when the loop falls behind, and the factor by which holds grow and
# shrink from one window to the next.
FIRST_HOLD = 0.002
FACTOR = 1.5
# Shares of a window in which the loop's thread computes: above the first the loop is falling
# behind, below the second it has caught up.
FALLING_BEHIND, CAUGHT_UP = 0.9, 0.7
WINDOW = 0.05

Flush = Callable[[], None]


class FlushScheduler:
    """The scheduler that all connections of one event loop share.

    Args:
        max_hold: maximum seconds to hold tokens back; 0 = never.
        clock: returns monotonic seconds.
        cpu_clock: returns the CPU seconds of this thread.
    """

    def __init__(
        self, max_hold: float = MAX_HOLD, clock: Callable[[], float] = time.monotonic, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self.hold = 0.0
        self._max_hold = max_hold
        self._clock, self._cpu_clock = clock, cpu_clock
        self._now: dict[Flush, None] = {}
        self._held: dict[Flush, None] = {}
        self._planned = False
        self._timer: asyncio.TimerHandle | None = None
        self._flushed = 0.0
        self._window = (clock(), cpu_clock())

    def soon(self, flush: Flush) -> None:
        """Call `flush()` when this step is over."""
        self._held.pop(flush, None)
        self._now[flush] = None
        self._plan()

    def later(self, flush: Flush) -> None:
        """Call `flush()` when this step is over, or up to `hold` seconds later."""
        if flush not in self._now:
            self._held[flush] = None
            self._plan()

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._step_over)

    def _step_over(self) -> None:
        self._planned = False
        now = self._clock()
        if self._max_hold and now - self._window[0] >= WINDOW:
            self._adapt(now)
        flushes, self._now = self._now, {}
        if self._held and now - self._flushed >= self.hold:
            flushes |= self._take_held(now)
        elif self._held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.hold, self._time_over)
        _call(flushes)

    def _time_over(self) -> None:
        """Flush the held connections, as no step has ended in time."""
        _call(self._take_held(self._clock()))

    def _take_held(self, now: float) -> dict[Flush, None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held, self._flushed = self._held, {}, now
        return held

    def _adapt(self, now: float) -> None:
        """Hold tokens longer if the thread was busy in nearly all of the last window, else less."""
        cpu = self._cpu_clock()
        busy = (cpu - self._window[1]) / (now - self._window[0])
        self._window = (now, cpu)
        if busy > FALLING_BEHIND:
            self.hold = min(self._max_hold, max(FIRST_HOLD, self.hold * FACTOR))
        elif busy < CAUGHT_UP:
            self.hold = self.hold / FACTOR if self.hold > FIRST_HOLD else 0.0


def _call(flushes: dict[Flush, None]) -> None:
    for flush in flushes:
        try:
            flush()
        except Exception:
            # The failure of one connection must not affect the others.
            logger.exception("writing to a connection failed")
