"""The errors that llmserve raises, one class for each decision of a caller.

    LLMServeError
    ├── InvalidRequest            change the request; sending it again fails again
    │   ├── PromptTooLong         shorten the prompt
    │   ├── ModelNotFound         choose a model that this server has
    │   └── UnknownTenant         use a tenant that this server knows
    ├── Overloaded                retry after `retry_after` seconds, or use another server
    │   ├── TenantOverloaded      retry later; another server does not help
    │   └── Unavailable           starting, restarting, paused, draining or stopped
    ├── RequestCancelled          the caller, or a token that it passed, cancelled the request
    ├── DeadlineExceeded          the request's deadline passed
    ├── EngineError               the engine failed this request; another request may work
    │   ├── EngineRestarted       the engine died during an answer that had begun; send it again
    │   └── EngineDead            the engine is down; nothing works until it is up again
    └── ConfigurationError        a setting or argument at the start is wrong; the message names it

llmserve converts exceptions of other libraries into these classes where it catches them. Each
frontend maps these classes to its wire format in one place.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmserve.request import Completion


class LLMServeError(Exception):
    """Base class of every error that llmserve raises on purpose.

    `generate()` and `TokenStream.collect()` set `partial` to the output of an answer that an error
    ended. It is None if there is no output. It excludes deltas that the caller has already read.
    """

    partial: "Completion | None" = None


class InvalidRequest(LLMServeError):
    """The request cannot be answered unless it is changed.

    `param` names the wrong field, as in `GenerationRequest` and `Sampling`. It is None if the error
    is about the request as a whole.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the model's context, or leaves no room for an answer."""

    def __init__(self, prompt_tokens: int, limit: int, param: str = "prompt") -> None:
        # LiteLLM and other clients recognise the error by the words before the full stop, which are
        # OpenAI's, or by the last words, which are vLLM's.
        words = f"This model's maximum context length is {limit} tokens. However, the prompt has {prompt_tokens} tokens, "
        super().__init__(f"{words}which leaves no room for an answer. Please reduce the length of the input prompt.", param)
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class ModelNotFound(InvalidRequest):
    """This server does not have the requested model."""

    def __init__(self, model: str, served: str, param: str = "model") -> None:
        super().__init__(f"the model {model[:64]!r} does not exist here; this server has {served!r}", param)


class UnknownTenant(InvalidRequest):
    """The tenant table has no entry for this tenant and no default."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"this server does not know the tenant {tenant[:64]!r}", "tenant")


class Overloaded(LLMServeError):
    """The server refused the request, to meet its targets for those it has already accepted.

    `retry_after` is in seconds, computed from the service rate. `reason` is from a closed set, so
    it can label a metric: see `llmserve.admission.Refusal`.
    """

    def __init__(self, message: str, *, retry_after: float, reason: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class TenantOverloaded(Overloaded):
    """The tenant has reached its own limit; other tenants are still served."""


class Unavailable(Overloaded):
    """The server accepts no requests: it is starting, restarting, paused, draining or stopped."""


class RequestCancelled(LLMServeError):
    """The request was cancelled. `reason` is the first reason that its token received."""

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
    """The engine died during this answer, and it is starting again.

    The answer stays incomplete: another engine would not continue it where it ended.
    """


class EngineDead(EngineError):
    """The engine's process is gone, or the engine makes no progress.

    `for_good` means that the engine will not be started again. `stalled` means that it was killed
    because it made no step. `requested` means that it is being restarted on request.
    """

    # Class attributes, because an error that another process sends over a wire may lack them.
    for_good = stalled = requested = False

    def __init__(self, message: str, *, for_good: bool = False, stalled: bool = False, requested: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good
        self.stalled = stalled
        self.requested = requested


class ConfigurationError(LLMServeError):
    """A setting or argument at the start is wrong; the message names it."""
