"""Errors in Anthropic's format."""

from typing import Literal

import msgspec

from frontends.openai.errors import ErrorBody, describe
from llmserve import LLMServeError

# The types of Anthropic's API reference by status. Clients retry by status, and log the type.
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessagesErrorDetail(msgspec.Struct, frozen=True):
    """Anthropic's `type` and `message`, with the `param` and `code` that all other routes have."""

    type: str
    message: str
    param: str | None
    code: str | None


class MessagesErrorBody(msgspec.Struct, frozen=True):
    """Anthropic's error object."""

    error: MessagesErrorDetail
    type: Literal["error"] = "error"


def converted(status: int, body: ErrorBody) -> MessagesErrorBody:
    """Return an error of another route in Anthropic's format."""
    found = body.error
    return MessagesErrorBody(MessagesErrorDetail(TYPES.get(status, "invalid_request_error"), found.message, found.param, found.code))


def error_of(error: LLMServeError) -> MessagesErrorBody:
    status, body, _ = describe(error)
    return converted(status, body)
