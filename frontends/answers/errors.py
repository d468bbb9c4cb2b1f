"""Errors in the format of a path's API: OpenAI's or Anthropic's."""

from typing import Any

from frontends.anthropic.errors import converted
from frontends.openai.errors import describe
from llmserve import LLMServeError


def described(error: LLMServeError, path: str) -> tuple[int, Any, dict[str, str]]:
    """Return status, body and headers for an error, in the format of the path's API."""
    status, body, headers = describe(error)
    is_anthropic = path.endswith(("/v1/messages", "/v1/messages/count_tokens"))
    return status, converted(status, body) if is_anthropic else body, headers
