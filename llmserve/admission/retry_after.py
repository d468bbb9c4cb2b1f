"""Chooses when a refused client should retry."""

import zlib
from collections.abc import Mapping

# A shorter time only costs another refusal. A client that gets more than 30 s goes elsewhere.
MIN_SECONDS, MAX_SECONDS = 0.1, 30.0
# Used before any request has been served, when there is no rate to compute with.
UNKNOWN = 1.0


class RetryAfter:
    """Gives each refused client a different time.

    A time computed from the queue alone would send all clients back at the same moment, to be
    refused again. Therefore each client gets the next free slot, behind the clients refused before
    it. Slots follow each other at the service rate.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def next(self, now: float, interval: float, over: float, who: str) -> float:
        """Return the seconds to wait.

        `interval` is the time between two served requests, 0 if unknown. `over` is how much the
        wait would have exceeded the patience.
        """
        if interval <= 0:
            return RETRY_AFTER["queue_full"]
        self._next = max(self._next, now + max(over, MIN_SECONDS)) + interval
        wait = self._next - now
        if wait > MAX_SECONDS:
            # Slots are assigned only for MAX_SECONDS. Further clients are spread over the second
            # half of that time.
            self._next = now + MAX_SECONDS
            wait = MAX_SECONDS * (0.5 + 0.5 * (zlib.crc32(who.encode()) % 1000) / 1000)
        return max(wait, MIN_SECONDS)
