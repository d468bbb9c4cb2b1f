"""Watches the deadlines of all open requests in one task.

A task for each request would cost as much as its admission.
"""

import heapq
import itertools
from collections.abc import Callable

import anyio
import attrs

# Released watches stay in the heap until they are due, or until they outnumber both this limit and
# half of the heap.
MAX_RELEASED = 64


@attrs.define(eq=False)
class Watch:
    """One deadline; nothing happens at it after `release()`."""

    expire: Callable[[], None] | None
    _deadlines: "Deadlines"

    def release(self) -> None:
        if self.expire is not None:
            self.expire = None
            self._deadlines.note_released()


class Deadlines:
    """Calls back at deadlines. `clock` returns monotonic seconds, like anyio's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, Watch]] = []
        self._released = 0
        self._earlier = anyio.Event()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, expire: Callable[[], None]) -> Watch:
        """Call `expire()` at `deadline`, which may be in the past. `expire` must not raise."""
        watch = Watch(expire, self)
        heapq.heappush(self._heap, (deadline, next(self._numbers), watch))
        if self._heap[0][2] is watch:
            self._earlier.set()
        return watch

    def note_released(self) -> None:
        self._released += 1
        if self._released > max(MAX_RELEASED, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if entry[2].expire is not None]
            heapq.heapify(self._heap)
            self._released = 0

    async def run(self) -> None:
        """Watch the deadlines until cancelled."""
        while True:
            self._expire_due()
            self._earlier = anyio.Event()
            pause = self._heap[0][0] - self._clock() if self._heap else float("inf")
            with anyio.move_on_after(pause):
                await self._earlier.wait()

    def _expire_due(self) -> None:
        while self._heap and self._heap[0][0] <= self._clock():
            _, _, watch = heapq.heappop(self._heap)
            expire, watch.expire = watch.expire, None
            if expire is None:
                self._released -= 1
            else:
                expire()
