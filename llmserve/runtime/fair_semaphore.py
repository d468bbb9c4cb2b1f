"""A semaphore that is fair between tenants: by the time they have held it, then by arrival."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio


class FairSemaphore:
    """Admits `count` holders at a time. A tenant's holding time counts as long as others wait."""

    def __init__(self, count: int, clock: Callable[[], float] = anyio.current_time) -> None:
        self._free = count
        self._clock = clock
        self._waiting: dict[str, deque[anyio.Event]] = {}
        self._held: dict[str, float] = {}

    @asynccontextmanager
    async def place(self, tenant: str, patience: float | None = None) -> AsyncIterator[None]:
        """Hold a slot. Raises TimeoutError after `patience` seconds without one; None waits longer."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(tenant, patience)
        began = self._clock()
        try:
            yield
        finally:
            self._held[tenant] = self._held.get(tenant, 0.0) + self._clock() - began
            self._hand_over()

    async def _wait(self, tenant: str, patience: float | None) -> None:
        mine = anyio.Event()
        if tenant not in self._waiting:
            # A tenant starts level with those that wait, so that no tenant saves up credit while
            # away.
            least = min((self._held.get(other, 0.0) for other in self._waiting), default=0.0)
            self._held[tenant] = max(self._held.get(tenant, 0.0), least)
        self._waiting.setdefault(tenant, deque()).append(mine)
        try:
            with anyio.fail_after(patience):
                await mine.wait()
        except BaseException:
            if mine.is_set():
                # The slot came at the moment of the cancellation, so pass it on.
                self._hand_over()
            else:
                self._leave(tenant, mine)
            raise

    def _hand_over(self) -> None:
        if not self._waiting:
            self._free += 1
            self._held.clear()
            return
        tenant = min(self._waiting, key=lambda name: self._held.get(name, 0.0))
        first = self._waiting[tenant][0]
        self._leave(tenant, first)
        first.set()

    def _leave(self, tenant: str, one: anyio.Event) -> None:
        self._waiting[tenant].remove(one)
        if not self._waiting[tenant]:
            del self._waiting[tenant]
