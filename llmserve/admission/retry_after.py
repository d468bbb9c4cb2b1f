"""When a refused client should come back."""

import zlib
from collections.abc import Mapping

# Seconds, by the reason of a refusal whose end cannot be computed. The reasons are `Refusal`'s and the frontends' error codes. `RetryAfter`
# computes those of a full queue, `Tenants` those of a tenant's own limits.
RETRY_AFTER: Mapping[str, float] = {
    # A warm start on a CPU takes about half a minute, and asking again is cheap.
    "starting": 5.0,
    "restarting": 5.0,
    "draining": 5.0,
    "stopped": 5.0,
    "slow": 5.0,
    # vLLM refuses without a time.
    "paused": 1.0,
    # Before anything has been served, and a limit of vLLM's.
    "queue_full": 1.0,
    "tenant_limit": 1.0,
    "tenant_unknown": 60.0,
    # Tokenization takes milliseconds, so a full queue of it is short; the trial of a grammar takes seconds.
    "tokenizer_busy": 1.0,
    "grammars_busy": 5.0,
    "too_many_connections": 1.0,
    "connection_full": 1.0,
    "receiving_too_much": 1.0,
    "idempotency_conflict": 1.0,
    # As long as the ingress has waited for one.
    "no_replica": 10.0,
}
# A client told to come back in less than this only costs another refusal; one told more than 30 s has gone elsewhere.
MIN_SECONDS, MAX_SECONDS = 0.1, 30.0


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
            return RETRY_AFTER["queue_full"]
        self._next = max(self._next, now + max(over, MIN_SECONDS)) + interval
        wait = self._next - now
        if wait > MAX_SECONDS:
            # The places are promised for as long as anybody waits: the rest is spread over the second half of that time.
            self._next = now + MAX_SECONDS
            wait = MAX_SECONDS * (0.5 + 0.5 * (zlib.crc32(who.encode()) % 1000) / 1000)
        return max(wait, MIN_SECONDS)
