"""The types of answers in OpenAI's format, complete and in chunks. `response_builder.py` writes them."""

from collections.abc import Sequence
from typing import Literal, Self

import msgspec

from frontends.openai.logprobs import ChatLogprobs, RankedLogprob, TextLogprobs
from frontends.openai.tools import CallBody
from llmserve import Timeline

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


class RequestMetrics(msgspec.Struct, frozen=True, omit_defaults=True):
    """The times of one sequence, in milliseconds, as vLLM defines them.

    A request waits in the queue until the engine schedules it; here this includes the wait for
    admission. The generation is the time between the first and the last token. The throughput counts
    from the scheduling on.
    """

    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None
    queue_time_ms: float | None = None
    mean_itl_ms: float | None = None
    tokens_per_second: float | None = None

    @classmethod
    def of(cls, timeline: Timeline) -> Self:
        """Return the metrics of a request that has ended; without those of stages that it did not reach."""
        scheduled = timeline.submitted if timeline.engine_scheduled is None else timeline.engine_scheduled
        first = timeline.first_token if timeline.engine_first_token is None else timeline.engine_first_token
        last = timeline.last_token if timeline.engine_last_token is None else timeline.engine_last_token
        generation, tokens = _milliseconds(first, last), timeline.completion_tokens
        inference = _milliseconds(scheduled, last)
        return cls(
            time_to_first_token_ms=_milliseconds(scheduled, first),
            generation_time_ms=generation,
            queue_time_ms=_milliseconds(timeline.arrived, scheduled),
            mean_itl_ms=None if generation is None or tokens < 2 else generation / (tokens - 1),
            tokens_per_second=tokens / inference * 1000 if inference else None,
        )


def _milliseconds(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else (end - begin) * 1000


# Absent on a server without `--per-request-metrics`; null for an answer of several sequences.
Metrics = RequestMetrics | None | msgspec.UnsetType


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
    metrics: Metrics = msgspec.UNSET
