"""A memory limit for all incomplete request bodies and frames together, for all wire protocols.

A client that sends nearly all of a body and then waits makes the server hold the body. One body
takes at most 4 MiB, but thousands exhaust the machine's memory.
"""

from collections.abc import Callable

import attrs

# Maximum bytes of one body or frame. A prompt of a million characters fits.
LARGEST = 4 * 2**20
# Bytes of each body that are not counted, so that ordinary requests arrive even when the budget is
# spent. The number of connections bounds their total.
FREE_BYTES = 64 * 2**10
# Sixteen bodies of the maximum size. At 10 Gbit/s such a body arrives within 4 ms.
MAX_BYTES = 64 * 2**20
# A body that has been arriving for this many seconds may be dropped for a new one. It takes 7
# Mbit/s to send 4 MiB in this time.
SLOW_SECONDS = 5.0
REFUSAL = "the server's memory for incomplete requests is full; retry later"


@attrs.define(eq=False)
class Arrival:
    """One body or frame that has not arrived completely.

    The budget calls `refuse` when it drops this body for a new one.
    """

    budget: "ReceiveBudget"
    refuse: Callable[[], None]
    counted: int = 0
    since: float = 0.0

    def grow(self, size: int) -> bool:
        """Report that `size` bytes of this body are held now.

        Returns False if there is no room. The body is then no longer counted, and the caller must
        drop it.
        """
        return self.budget.count(self, max(0, size - FREE_BYTES))

    def end(self) -> None:
        """Report that the body has arrived or was dropped."""
        self.budget.count(self, 0)


class ReceiveBudget:
    """The shared memory limit.

    Args:
        clock: returns monotonic seconds.
        max_bytes: maximum bytes in memory beyond the `FREE_BYTES` of each body.
    """

    def __init__(self, clock: Callable[[], float], max_bytes: int | None = None) -> None:
        self._clock = clock
        self._max = MAX_BYTES if max_bytes is None else max_bytes
        self.bytes = 0
        # Ordered by the time of their first counted byte.
        self._arrivals: dict[Arrival, None] = {}

    def count(self, arrival: Arrival, size: int) -> bool:
        fits = self._make_room(arrival, size - arrival.counted)
        size = size if fits else 0
        self.bytes += size - arrival.counted
        arrival.counted = size
        if not size:
            self._arrivals.pop(arrival, None)
        elif arrival not in self._arrivals:
            arrival.since = self._clock()
            self._arrivals[arrival] = None
        return fits

    def _make_room(self, arrival: Arrival, more: int) -> bool:
        while self.bytes + more > self._max:
            oldest = next(iter(self._arrivals), arrival)
            if oldest is arrival or self._clock() - oldest.since < SLOW_SECONDS:
                return False
            oldest.end()
            oldest.refuse()
        return True
