"""Chooses when a refused client should retry."""

import zlib
from collections.abc import Mapping

# A shorter time only costs another refusal. A client that gets more than 30 s goes elsewhere.
MIN_SECONDS, MAX_SECONDS = 0.1, 30.0
# Seconds by reason, for refusals whose end cannot be computed. The reasons are those of `Refusal`
# and the error codes of the frontends. `RetryAfter` computes the seconds of a full queue, `Tenants`
# those of a tenant's own limits.
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
