"""The table from llmserve's errors to HTTP: status, and OpenAI's type and code."""

import math
from collections.abc import Mapping

import msgspec

from llmserve import (
    DeadlineExceeded,
    EngineDead,
    EngineError,
    EngineRestarted,
    InvalidRequest,
    LLMServeError,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
    TenantOverloaded,
    Unavailable,
    UnknownTenant,
)
from llmserve.admission.retry_after import RETRY_AFTER
from llmserve.state import NotRunning

# Most specific first: the first matching class counts.
TABLE: tuple[tuple[type[LLMServeError], int, str, str | None], ...] = (
    (ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (UnknownTenant, 403, "permission_error", "unknown_tenant"),
    (PromptTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequest, 400, "invalid_request_error", None),
    (TenantOverloaded, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Unavailable, 503, "service_unavailable", "unavailable"),
    (Overloaded, 503, "service_unavailable", "overloaded"),
    (DeadlineExceeded, 504, "timeout_error", "deadline_exceeded"),
    (RequestCancelled, 503, "service_unavailable", "cancelled"),
    (EngineRestarted, 503, "service_unavailable", "engine_restarted"),
    (EngineDead, 503, "service_unavailable", "engine_dead"),
    (EngineError, 500, "server_error", "engine_error"),
    (LLMServeError, 500, "server_error", None),
)


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    error: ErrorDetail


class HTTPFailure(LLMServeError):
    """An error that only HTTP has: a body too large or too slow, or an unknown path."""

    def __init__(self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if code in RETRY_AFTER:
            self.headers.setdefault("Retry-After", f"{RETRY_AFTER[code]:.0f}")


def public_message(error: LLMServeError) -> str:
    """Return the error's text for a client.

    A server listens before its manager has started and after it has closed. The text then does not
    mention the manager.
    """
    return error.public if isinstance(error, NotRunning) else str(error)


def describe(error: LLMServeError) -> tuple[int, ErrorBody, dict[str, str]]:
    """Return status, body and headers for an error."""
    if isinstance(error, HTTPFailure):
        return error.status, ErrorBody(ErrorDetail(str(error), "invalid_request_error", error.param, error.code)), error.headers
    _, status, kind, code = next(row for row in TABLE if isinstance(error, row[0]))
    headers = {}
    if isinstance(error, Overloaded):
        # HTTP requires whole seconds, which are rounded up. OpenAI's client prefers the
        # milliseconds.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        headers["Retry-After-Ms"] = str(math.ceil(error.retry_after * 1000))
    param = error.param if isinstance(error, InvalidRequest) else None
    return status, ErrorBody(ErrorDetail(public_message(error)[:512], kind, param, code)), headers
