"""When a refused client should come back."""

import zlib

# A client told to come back in less than this only costs another refusal; one told more than 30 s has gone elsewhere.
MIN_SECONDS, MAX_SECONDS = 0.1, 30.0
# Before anything has been served there is no rate to compute with.
UNKNOWN = 1.0


class RetryAfter:
    """Gives every refused client a time of its own.

    A hint computed from the line alone would send all of them back at the same moment, to be refused again. So each is told the next free
    place: as if those refused before it came back as they were told, one after another at the rate at which requests are served.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def next(self, now: float, interval: float, over: float, who: str) -> float:
        """Seconds. `interval` lies between two that are served, 0 if unknown; `over` is how much too long the wait would have been."""
        if interval <= 0:
            return UNKNOWN
        self._next = max(self._next, now + max(over, MIN_SECONDS)) + interval
        wait = self._next - now
        if wait > MAX_SECONDS:
            # The places are promised for as long as anybody waits: the rest is spread over the second half of that time.
            self._next = now + MAX_SECONDS
            wait = MAX_SECONDS * (0.5 + 0.5 * (zlib.crc32(who.encode()) % 1000) / 1000)
        return max(wait, MIN_SECONDS)
