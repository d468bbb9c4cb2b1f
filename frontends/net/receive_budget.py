"""How much memory the request bodies and frames that are still arriving may take together, for any wire.

A client that sends nearly all of a body and then waits makes the server hold it. One body costs at most 4 MiB, thousands cost the machine.
"""

from collections.abc import Callable

import attrs

# Of one body or frame. A prompt of a million characters fits; what is larger is no prompt for the models that this serves.
LARGEST = 4 * 2**20
# Bytes of each body that are not counted: an ordinary request arrives also when the budget is spent. What they take together is bounded by
# the number of connections.
FREE_BYTES = 64 * 2**10
# Sixteen bodies of the largest size. At 10 Gbit/s such a body arrives within 4 ms.
MAX_BYTES = 64 * 2**20
# A body that has been arriving for this long gives way to a new one: it takes 7 Mbit/s to send 4 MiB in this time.
SLOW_SECONDS = 5.0
REFUSAL = "this server holds as much of requests that have not arrived completely as it may; send it again later"


@attrs.define(eq=False)
class Arrival:
    """One body or frame that has not arrived completely. `refuse` is called when it has to give way."""

    budget: "ReceiveBudget"
    refuse: Callable[[], None]
    counted: int = 0
    since: float = 0.0

    def grow(self, size: int) -> bool:
        """So many bytes of it are held now. False if there is no room for them: then it is not counted any more, and must be dropped."""
        return self.budget.count(self, max(0, size - FREE_BYTES))

    def end(self) -> None:
        """It has arrived, or was dropped."""
        self.budget.count(self, 0)


class ReceiveBudget:
    """`clock` returns monotonic seconds; `max_bytes` bounds what is held beyond the `FREE_BYTES` of each body."""

    def __init__(self, clock: Callable[[], float], max_bytes: int | None = None) -> None:
        self._clock = clock
        self._max = MAX_BYTES if max_bytes is None else max_bytes
        self.bytes = 0
        # In the order in which they were first counted.
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
