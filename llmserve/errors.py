"""What can go wrong, one class for each decision that a caller makes.

    LLMServeError
    ├── InvalidRequest            change the request; repeating it is useless
    │   ├── PromptTooLong         shorten the prompt
    │   ├── ModelNotFound         ask for a model that is served here
    │   └── UnknownTenant         be somebody whom this server knows
    ├── Overloaded                come back after `retry_after` seconds, or go elsewhere
    │   ├── TenantOverloaded      the same, because of your own limit: going elsewhere does not help
    │   └── Unavailable           starting, paused, draining or stopped: nothing is accepted here now
    ├── RequestCancelled          you, or a token that you handed in, cancelled it
    ├── DeadlineExceeded          the time that the request was given is over
    ├── EngineError               the engine failed this request; another may work
    │   ├── EngineRestarted       the engine died under an answer that had begun; ask again
    │   └── EngineDead            the engine is gone; nothing works until it is back
    └── ConfigurationError        an argument to start with is wrong; it is named

Foreign exceptions are turned into these where they are met; each frontend turns these into its wire once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmserve.request import Completion


class LLMServeError(Exception):
    """Base of every error that llmserve raises on purpose.

    `partial` is the output so far of an answer that the error ended: set by `generate()` and `TokenStream.collect()`, None where there
    is none, and without what the caller has read of the stream before.
    """

    partial: "Completion | None" = None


class InvalidRequest(LLMServeError):
    """The request can never be answered as it stands.

    `param` names the field that is wrong, in the words of `GenerationRequest` and `Sampling`, or is None when the
    request as a whole is.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt, and what it leaves for the answer, does not fit the model's context."""

    def __init__(self, prompt_tokens: int, limit: int, param: str = "prompt") -> None:
        # LiteLLM and other clients recognise the error by the words before the full stop, which are OpenAI's.
        words = f"This model's maximum context length is {limit} tokens. However, the prompt has {prompt_tokens} tokens, "
        super().__init__(f"{words}which leaves no room for an answer. Shorten the prompt.", param)
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class ModelNotFound(InvalidRequest):
    """The model asked for is not served here."""

    def __init__(self, model: str, served: str, param: str = "model") -> None:
        super().__init__(f"the model {model[:64]!r} does not exist here; this server has {served!r}", param)


class UnknownTenant(InvalidRequest):
    """The operator's table of tenants has no entry for this one, and none for others."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"this server does not know the tenant {tenant[:64]!r}", "tenant")


class Overloaded(LLMServeError):
    """Refused to keep the promise made to those already accepted.

    `retry_after` is in seconds, computed from how fast work leaves. `reason` is from a closed set, fit for a metric's
    label: see `llmserve.admission.Refusal`.
    """

    def __init__(self, message: str, *, retry_after: float, reason: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class TenantOverloaded(Overloaded):
    """The tenant's own limit is reached; others are still served."""


class Unavailable(Overloaded):
    """Not accepting requests: starting, paused, draining or stopped."""


class RequestCancelled(LLMServeError):
    """Cancelled through a token. `reason` is the first reason that the token was given."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cancelled: {reason}")
        self.reason = reason


class DeadlineExceeded(LLMServeError):
    """The request's deadline passed before its answer was complete."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not finished within its deadline of {seconds:g} s")
        self.seconds = seconds


class EngineError(LLMServeError):
    """The engine failed while it worked on this request."""


class EngineRestarted(EngineError):
    """The engine died while this answer was on its way, and is started again. What came of the answer stays as it is: another
    one would not go on where it ended."""


class EngineDead(EngineError):
    """The engine's process is gone, or it makes no progress. `for_good`: it will not be started again. `stalled`: it was killed because it
    made no step."""

    # Also for an error of another process, which a wire brings without them.
    for_good = stalled = False

    def __init__(self, message: str, *, for_good: bool = False, stalled: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good
        self.stalled = stalled


class ConfigurationError(LLMServeError):
    """An argument to start with is wrong; the message names it."""
