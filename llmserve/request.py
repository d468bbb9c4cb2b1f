"""Requests and their results. Knows no engine, no clock and no wire format.

`GenerationRequest` and `Sampling` validate themselves, so every instance is well-formed. Only
checks that need the model's figures (vocabulary, context length) come later. The bounds exist
because unbounded fields have stalled or killed an engine for all requests.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import NoneType
from typing import Any, Unpack

import attrs

from llmserve.errors import InvalidRequest
from llmserve.images.parts import with_parts
from llmserve.structured import StructuredOutputs
from llmserve.tools import Message, Tools
from llmserve.validation import converters
from llmserve.validation.bounds import are_token_ids, instance, integer, number, one_of, texts, token_ids, wrong_type
from llmserve.validation.inputs import Input, RequestFields, input_field, split_fields
from llmserve.validation.results import Result, plain
from llmserve.validation.template import template_kwargs

# OpenAI's published schema allows 4 stop strings and 20 top logprobs.
MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
# Logprobs of one answer, alternatives included: they take 45 MB as objects and 23 MB as the JSON of
# a chat.
MAX_LOGPROB_ENTRIES = 2**18
MAX_BIASES = 1024
# vLLM's GPU model runner has room for 128, including the model's own end tokens; one more ends the
# engine.
MAX_STOP_TOKENS = 64
MAX_ALLOWED_TOKENS = 1024
# The engine encodes each bad word as it is and after a space, and compares it with the answer's end
# at each token.
MAX_BAD_WORDS = 32
INT64 = 2**63 - 1
# Far above any model's context, and small enough for an int32.
MAX_TOKENS_FIELD = 2**31 - 1


@attrs.frozen(kw_only=True)
class Sampling:
    """How to choose tokens and when to stop. `None` selects the model's own generation config.

    Attributes:
        max_tokens: Maximum number of tokens to generate. None allows as many as the context still
            holds.
        min_tokens: Number of tokens before which the answer cannot end with an end-of-sequence
            token.
        temperature: 0 is greedy; the maximum is 2, as in OpenAI's API and vLLM 0.32.
        top_p, top_k, min_p: Cut the distribution's tail. A top_k of 0 or -1 keeps all tokens.
        presence_penalty, frequency_penalty: From -2 to 2, as in OpenAI's API.
        repetition_penalty: Above 0 and at most 100; 1 has no effect.
        seed: A signed 64-bit integer that makes the choice repeatable.
        stop: At most 4 strings of at most 256 characters. The text ends before the first one that
            occurs, or after it with `include_stop`.
        stop_token_ids: At most 64 token ids that end the answer.
        ignore_eos: Whether generation continues after an end-of-sequence token.
        skip_special_tokens: Whether the text leaves out special tokens.
        stream_interval: Tokens in each delta of a stream after the first delta. A larger value
            gives fewer and later deltas.
        detokenize: False leaves the text of the answer empty, for callers that need token ids
            alone. It excludes `stop` and tools.
        logprobs: Number of alternatives to report for each token, 0 to 20. None reports no
            logprobs. `max_tokens` times (1 + `logprobs`) may be at most 262,144; if `max_tokens` is
            None, the answer ends at that bound.
        prompt_logprobs: The same for the prompt's tokens.
        logit_bias: A number from -100 to 100 to add to the logit of each of at most 1,024 token
            ids.
        allowed_token_ids: 1 to 1,024 token ids that the answer may consist of; None allows all. The
            answer ends at `max_tokens` unless the end-of-sequence token is among them.
        bad_words: At most 32 strings of at most 256 characters that the answer must not contain.
        structured_outputs: A constraint on the answer's format.

    Raises:
        InvalidRequest: A value is out of its bounds; `param` names the field.
        TypeError: A value has a type that the field does not accept.
    """

    max_tokens: int | None = attrs.field(default=None, validator=integer(1, MAX_TOKENS_FIELD))
    min_tokens: int = attrs.field(default=0, validator=integer(0, MAX_TOKENS_FIELD))
    temperature: float | None = attrs.field(default=None, validator=number(0, 2))
    top_p: float | None = attrs.field(default=None, validator=number(0, 1, above=True))
    top_k: int | None = attrs.field(default=None, validator=integer(-1, MAX_TOKENS_FIELD))
    min_p: float | None = attrs.field(default=None, validator=number(0, 1))
    presence_penalty: float = attrs.field(default=0.0, validator=number(-2, 2))
    frequency_penalty: float = attrs.field(default=0.0, validator=number(-2, 2))
    repetition_penalty: float | None = attrs.field(default=None, validator=number(0, 100, above=True))
    seed: int | None = attrs.field(default=None, validator=integer(-INT64 - 1, INT64))
    stop: tuple[str, ...] = attrs.field(default=(), converter=converters.stop, validator=texts(MAX_STOP_STRINGS, MAX_STOP_LENGTH))
    stop_token_ids: tuple[int, ...] = attrs.field(default=(), converter=converters.stop_token_ids, validator=token_ids(MAX_STOP_TOKENS))
    include_stop: bool = attrs.field(default=False, validator=instance(bool, "True or False"))
    ignore_eos: bool = attrs.field(default=False, validator=instance(bool, "True or False"))
    skip_special_tokens: bool = attrs.field(default=True, validator=instance(bool, "True or False"))
    stream_interval: int = attrs.field(default=1, validator=integer(1, MAX_TOKENS_FIELD))
    detokenize: bool = attrs.field(default=True, validator=instance(bool, "True or False"))
    logprobs: int | None = attrs.field(default=None, validator=integer(0, MAX_LOGPROBS))
    prompt_logprobs: int | None = attrs.field(default=None, validator=integer(0, MAX_LOGPROBS))
    logit_bias: tuple[tuple[int, float], ...] = attrs.field(default=(), converter=converters.logit_bias)
    allowed_token_ids: tuple[int, ...] | None = attrs.field(
        default=None, converter=converters.allowed_token_ids, validator=token_ids(MAX_ALLOWED_TOKENS, least=1)
    )
    bad_words: tuple[str, ...] = attrs.field(default=(), converter=converters.bad_words, validator=texts(MAX_BAD_WORDS, MAX_STOP_LENGTH))
    structured_outputs: StructuredOutputs | None = attrs.field(
        default=None, validator=instance((StructuredOutputs, NoneType), "a StructuredOutputs or None")
    )

    @min_tokens.validator
    def _below_max_tokens(self, _: object, value: int) -> None:
        if self.max_tokens is not None and value > self.max_tokens:
            raise InvalidRequest(f"min_tokens ({value}) is more than max_tokens ({self.max_tokens})", "min_tokens")

    @stop.validator
    def _has_text(self, _: object, value: tuple[str, ...]) -> None:
        if value and not self.detokenize:
            raise InvalidRequest("stop needs the answer's text, and detokenize is false", "stop")

    @logit_bias.validator
    def _few_biases(self, _: object, value: tuple[tuple[int, float], ...]) -> None:
        if len(value) > MAX_BIASES or not are_token_ids([token for token, _ in value]):
            raise InvalidRequest(f"logit_bias takes at most {MAX_BIASES:,} token ids, none negative", "logit_bias")
        # A comparison with NaN is false, so this refuses NaN too.
        if not all(type(bias) in (int, float) and -100 <= bias <= 100 for _, bias in value):
            raise InvalidRequest("logit_bias takes numbers from -100 to 100", "logit_bias")


@attrs.frozen
class GenerationRequest:
    """A request for one sequence: a prompt or a conversation, its sampling and its tenant.

    Attributes:
        prompt: Text or token ids. Exactly one of `prompt` and `messages` must be set.
        messages: A conversation in OpenAI's form, rendered with the model's chat template. A content
            may be a list of texts, parts in OpenAI's form and `Image`s.
        sampling: How to choose tokens and when to stop.
        tools: Functions that the model may call; only with `messages`.
        template_kwargs: Arguments of the chat template; only with `messages`
            (`llmserve.validation.template`).
        add_special_tokens: Whether the tokenizer adds the model's special tokens. None adds them to
            a text, and not to a conversation, whose template has them.
        truncate_prompt_tokens: Maximum number of the prompt's tokens to keep; -1 keeps as many as
            leave room for one token of an answer. None keeps all.
        truncation_side: "left" removes the prompt's first tokens, "right" its last ones.
        adapter: The name of one of the engine's LoRA adapters. None selects the model itself.
        tenant: The tenant that the request counts for.
        priority: Requests with a smaller number go first, as in vLLM.
        best_effort: If the request cannot meet the SLO, serve it late instead of refusing it.
        deadline: Seconds from arrival within which the whole answer must be complete, including
            waiting.
        return_prompt_ids: Whether the stream and the completion carry the prompt's token ids, as
            the engine got them.
        request_id: Must be unique among the open requests.
        trace_headers: W3C `traceparent` and `tracestate` of the trace that the request belongs to.
        on_arrival: Called with the request's timeline on arrival. The manager fills in the timeline
            until the request ends. The callback must not raise.

    Raises:
        InvalidRequest: Both or neither of `prompt` and `messages` are set, the one set is empty, or
            a value is out of its bounds.
        TypeError: A value has a type that the field does not accept.
    """

    prompt: str | tuple[int, ...] | None = attrs.field(default=None, converter=converters.prompt)
    messages: tuple[Mapping[str, Any], ...] | None = attrs.field(default=None, converter=with_parts, kw_only=True)
    sampling: Sampling = attrs.field(factory=Sampling, validator=instance(Sampling, "a Sampling"), kw_only=True)
    tools: Tools | None = attrs.field(default=None, validator=instance((Tools, NoneType), "a Tools or None"), kw_only=True)
    template_kwargs: Mapping[str, Any] = attrs.field(factory=dict, validator=template_kwargs, kw_only=True)
    add_special_tokens: bool | None = attrs.field(default=None, validator=instance((bool, NoneType), "True, False or None"), kw_only=True)
    truncate_prompt_tokens: int | None = attrs.field(default=None, validator=integer(-1, MAX_TOKENS_FIELD), kw_only=True)
    truncation_side: str | None = attrs.field(default="left", validator=one_of("left", "right"), kw_only=True)
    adapter: str | None = attrs.field(default=None, validator=instance((str, NoneType), "a string or None"), kw_only=True)
    tenant: str = attrs.field(default="default", validator=instance(str, "a string"), kw_only=True)
    priority: int = attrs.field(default=0, validator=integer(-(2**31), 2**31 - 1), kw_only=True)
    deadline: float | None = attrs.field(default=None, validator=number(0, 86_400, above=True), kw_only=True)
    best_effort: bool = attrs.field(default=False, validator=instance(bool, "True or False"), kw_only=True)
    return_prompt_ids: bool = attrs.field(default=False, validator=instance(bool, "True or False"), kw_only=True)
    request_id: str = attrs.field(factory=lambda: secrets.token_hex(16), validator=instance(str, "a string"), kw_only=True)
    trace_headers: Mapping[str, str] = attrs.field(
        factory=dict, validator=instance(Mapping, "a mapping of strings"), kw_only=True, repr=False
    )
    on_arrival: "Callable[[Timeline], None] | None" = attrs.field(default=None, kw_only=True, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give exactly one of prompt and messages", "prompt")
        if self.messages is not None and not self.messages:
            raise InvalidRequest("messages is empty", "messages")
        if self.tools is not None and self.messages is None:
            raise InvalidRequest("tools need messages", "tools")
        if self.tools is not None and self.tools.choice != "none" and self.sampling.structured_outputs is not None:
            raise InvalidRequest("structured_outputs cannot be combined with tools unless tool_choice is none", "structured_outputs")
        if self.tools is not None and not self.sampling.detokenize:
            raise InvalidRequest("tools need the answer's text, and detokenize is false", "detokenize")
        if self.prompt is not None and not self.prompt:
            raise InvalidRequest("prompt is empty", "prompt")
        if isinstance(self.prompt, tuple) and not are_token_ids(self.prompt):
            raise InvalidRequest("prompt as token ids takes whole numbers, none negative", "prompt")

    @classmethod
    def of(
        cls, request: "GenerationRequest | Input", sampling: Sampling | None = None, **fields: Unpack[RequestFields]
    ) -> "GenerationRequest":
        """Make a request from text, token ids or messages, or a copy of a request with changes.

        Args:
            request: The input, or the request to copy.
            sampling: Replaces the sampling of `request`.
            **fields: Fields of this class and of `Sampling`. Each replaces that one value.

        Raises:
            InvalidRequest: As in the constructor.
            TypeError: `request` or `sampling` has an unsupported type, or a field is unknown.
        """
        if sampling is not None and not isinstance(sampling, Sampling):
            raise wrong_type("sampling", "a Sampling or None", sampling)
        of_sampling, of_request = split_fields(fields)
        if of_sampling:
            base = sampling or (request.sampling if isinstance(request, GenerationRequest) else Sampling())
            sampling = attrs.evolve(base, **of_sampling)
        if sampling is not None:
            of_request["sampling"] = sampling
        if not isinstance(request, GenerationRequest):
            return cls(**input_field(request), **of_request)
        return attrs.evolve(request, **of_request) if of_request else request

    @property
    def prompt_field(self) -> str:
        """The field that holds the prompt, for an error's `param`: "prompt" or "messages"."""
        return "prompt" if self.messages is None else "messages"


class Outcome(StrEnum):
    """How a request ended. The set is closed, so it can label a metric."""

    COMPLETED = "completed"
    REFUSED = "refused"
    INVALID = "invalid"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"


@attrs.define(kw_only=True)
class Timeline:
    """When one request reached each stage, in monotonic seconds; None if it did not reach it.

    All latency metrics come from these times. The times with the prefix `engine_` are the engine's
    own readings of the same clock, where the engine reports them.
    """

    request_id: str = ""
    tenant: str = "default"
    # Set only where the engine has an adapter of that name.
    adapter: str | None = None
    arrived: float = 0.0
    tokenized: float | None = None
    admitted: float | None = None
    submitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None
    engine_queued: float | None = None
    engine_scheduled: float | None = None
    engine_first_token: float | None = None
    engine_last_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    outcome: Outcome | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values, by name."""
        return plain(self)


# With gc=False the garbage collector does not track these two classes. Nothing in them can refer
# back to them, and one answer may have a quarter of a million.
class TokenLogprob(Result, frozen=True, gc=False):
    """One token's log probability and the most likely alternatives, best first.

    `logprob` is None for a prompt's first token.
    """

    token_id: int
    token: str
    logprob: float | None
    top: tuple["TokenLogprob", ...] = ()


class Delta(Result, frozen=True, gc=False):
    """What the engine generated since the last delta.

    Attributes:
        text: May lag behind `token_ids` while a character or a stop string is incomplete.
        token_ids: The new tokens.
        finish_reason: "stop" or "length" in the last delta, None before it.
        stop_reason: The stop string or token id that ended the answer, if one did.
        logprobs: One item for each token. Where several deltas were merged, the sequence makes its
            items when they are read.
        prompt_logprobs: One item for each token of the prompt.
        message: The text parsed into content, reasoning and tool calls, if the engine parses it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Sequence[TokenLogprob] | None = None
    prompt_logprobs: Sequence[TokenLogprob] | None = None
    message: Message | None = None


class Usage(Result, frozen=True):
    """Number of tokens of the prompt and of the answer.

    The engine found `cached_tokens` of the prompt in its prefix cache.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Completion(Result, frozen=True):
    """A whole answer, or the part before an error, with the `finish_reason` "abort".

    `message` is the text parsed into content, reasoning and tool calls, if the engine parses it.
    `prompt_token_ids` is set for a request with `return_prompt_ids`.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    stop_reason: str | int | None = None
    logprobs: Sequence[TokenLogprob] | None = None
    prompt_logprobs: Sequence[TokenLogprob] | None = None
    message: Message | None = None
    prompt_token_ids: tuple[int, ...] | None = None
