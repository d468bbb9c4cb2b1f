"""Why a request was not admitted, and the error that says so."""

from enum import StrEnum

import attrs

from llmserve.errors import Overloaded, TenantOverloaded


class Refusal(StrEnum):
    """The reasons: a closed set, fit for a metric's label."""

    QUEUE_FULL = "queue_full"
    WOULD_WAIT_TOO_LONG = "would_wait_too_long"
    WAITED_TOO_LONG = "waited_too_long"
    TENANT_LIMIT = "tenant_limit"
    TOKENIZER_BUSY = "tokenizer_busy"
    STARTING = "starting"
    DRAINING = "draining"
    STOPPED = "stopped"


@attrs.frozen
class Refused:
    """Not admitted, and when to come back: `retry_after` in seconds."""

    reason: Refusal
    retry_after: float

    def error(self) -> Overloaded:
        """What the caller is told."""
        seconds = f"try again in {self.retry_after:.1f} s"
        if self.reason is Refusal.TENANT_LIMIT:
            return TenantOverloaded(f"this tenant's limit is reached; {seconds}", retry_after=self.retry_after, reason=self.reason)
        return Overloaded(f"the server is at its limit; {seconds}", retry_after=self.retry_after, reason=self.reason)
