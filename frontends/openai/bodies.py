"""The OpenAI wire: what answers look like, whole and in chunks. `completions.py` writes them."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from frontends.openai.logprobs import ChatLogprobs, RankedLogprob, TextLogprobs
from frontends.openai.tools import CallBody

# For `return_token_ids` and `prompt_logprobs`, as vLLM has them: null in a whole answer to a request without them, absent from its chunks.
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
    """`content` is null where there are calls and no words; `reasoning` is vLLM's name for what a model thought before."""

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
    """A whole answer, or a chunk of one; `usage` is left out of chunks unless it was asked for. Completions have the prompt's token ids and
    logprobs in their choices."""

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: Sequence[TextChoice | ChatChoice | ChatChunkChoice]
    usage: UsageBody | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: TokenIds = msgspec.UNSET
    prompt_logprobs: PromptLogprobs = msgspec.UNSET
