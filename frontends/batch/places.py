"""The places of batches in progress, which tenants share."""

from collections import Counter, deque

import anyio


class Places:
    """Places that batches hold, each of a tenant.

    A tenant's first place may be any of `most`, its further ones only some of the first `shared`. So a
    tenant that holds all shared places delays no other tenant. A free place is for the tenant that holds
    fewest; tenants that hold equally many take turns.
    """

    def __init__(self, shared: int, most: int) -> None:
        self._shared = shared
        self._most = most
        self._held: Counter[str | None] = Counter()
        # Batches that wait, by tenant; the tenant that got a place last is at the end.
        self._waiting: dict[str | None, deque[anyio.Event]] = {}

    async def acquire(self, tenant: str | None) -> None:
        """Take a place, and wait for one if necessary."""
        mine = anyio.Event()
        self._waiting.setdefault(tenant, deque()).append(mine)
        self._hand_out()
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():
                self.release(tenant)
            else:
                self._leave(tenant, mine)
            raise

    def release(self, tenant: str | None) -> None:
        """Return a place."""
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            tenant = min(self._waiting, key=self._held.__getitem__)
            if self._held.total() >= (self._shared if self._held[tenant] else self._most):
                return
            first = self._waiting[tenant][0]
            self._leave(tenant, first)
            if tenant in self._waiting:
                self._waiting[tenant] = self._waiting.pop(tenant)
            self._held[tenant] += 1
            first.set()

    def _leave(self, tenant: str | None, one: anyio.Event) -> None:
        self._waiting[tenant].remove(one)
        if not self._waiting[tenant]:
            del self._waiting[tenant]
