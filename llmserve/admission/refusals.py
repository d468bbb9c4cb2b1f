"""The reasons for a refusal, and the error for each."""

from enum import StrEnum
from typing import NamedTuple

from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.errors import LLMServeError, Overloaded, TenantOverloaded, UnknownTenant


class Refusal(StrEnum):
    """The reasons for a refusal: a closed set, so it can label a metric."""

    QUEUE_FULL = "queue_full"
    WOULD_WAIT_TOO_LONG = "would_wait_too_long"
    WAITED_TOO_LONG = "waited_too_long"
    DISPLACED = "displaced"
    PROMPT_TOO_SLOW = "prompt_too_slow"
    DEADLINE_TOO_SHORT = "deadline_too_short"
    TENANT_LIMIT = "tenant_limit"
    TENANT_TOKENS = "tenant_tokens"
    TENANT_UNKNOWN = "tenant_unknown"
    TOKENIZER_BUSY = "tokenizer_busy"
    GRAMMARS_BUSY = "grammars_busy"
    STARTING = "starting"
    RESTARTING = "restarting"
    PAUSED = "paused"
    SLOW = "slow"
    DRAINING = "draining"
    STOPPED = "stopped"


# The tenant itself causes these refusals, so another server would not help.
TENANT_REASONS = frozenset({Refusal.TENANT_LIMIT, Refusal.TENANT_TOKENS})

_WORDS = {
    Refusal.GRAMMARS_BUSY: "too many schemas and grammars wait to be compiled",
    Refusal.TENANT_LIMIT: "this tenant has reached its limit of concurrent requests",
    Refusal.TENANT_TOKENS: "this tenant has used up its tokens for the minute",
    Refusal.PROMPT_TOO_SLOW: "a prompt of this length cannot get its first token within the target time",
    Refusal.DEADLINE_TOO_SHORT: "the answer would not be complete before the request's deadline",
}


class Refused(NamedTuple):
    """A refusal. `retry_after` and `wait` are in seconds; `wait` is None without a prediction."""

    reason: Refusal
    retry_after: float
    wait: float | None = None

    @classmethod
    def of(cls, reason: Refusal) -> "Refused":
        """For a reason that has its seconds in `RETRY_AFTER`."""
        return cls(reason, RETRY_AFTER[reason])

    def error(self, tenant: str = "") -> LLMServeError:
        """Return the error for the caller."""
        if self.reason is Refusal.TENANT_UNKNOWN:
            return UnknownTenant(tenant)
        words = _WORDS.get(self.reason, "the server is at its limit")
        kind = TenantOverloaded if self.reason in TENANT_REASONS else Overloaded
        return kind(f"{words}; try again in {self.retry_after:.1f} s", retry_after=self.retry_after, reason=self.reason)
