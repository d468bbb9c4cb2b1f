"""The types of answers in OpenAI's format, complete and in chunks. `response_builder.py` writes them."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from frontends.openai.logprobs import ChatLogprobs, RankedLogprob, TextLogprobs
from frontends.openai.tools import CallBody

# The fields of `return_token_ids` and `prompt_logprobs`. As in vLLM, a request without these
# options gets null in a complete answer, and no such field in chunks.
TokenIds = Sequence[int] | None | msgspec.UnsetType
PromptLogprobs = list[dict[str, RankedLogprob] | None] | None | msgspec.UnsetType


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: TokenIds = msgspec.UNSET
    prompt_token_ids: TokenIds = msgspec.UNSET
    prompt_logprobs: PromptLogprobs = msgspec.UNSET


class ChatMessageBody(msgspec.Struct):
    """The message of a chat answer. `content` is null where there are tool calls and no text.

    `reasoning` is vLLM's name for the model's reasoning.
    """

    role: str
    content: str | None
    refusal: None = None
    tool_calls: list[CallBody] | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessageBody
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: TokenIds = None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallBody] | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: TokenIds = msgspec.UNSET


class Answer(msgspec.Struct):
    """A complete answer, or a chunk of one.

    Chunks have `usage` only if the client requested it. For completions, the choices have the
    prompt's token ids and logprobs.
    """

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: Sequence[TextChoice | ChatChoice | ChatChunkChoice]
    usage: UsageBody | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: TokenIds = msgspec.UNSET
    prompt_logprobs: PromptLogprobs = msgspec.UNSET
