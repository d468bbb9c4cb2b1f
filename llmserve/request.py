"""What a caller asks for and what comes back. Knows no engine, no clock and no wire format.

`GenerationRequest` and `Sampling` check themselves: one that exists is well-formed, and only what needs the model's own
figures (vocabulary, context length) is left to check later. The checks exist because a field that reaches an engine
without a bound has, in the past, stalled or killed the engine for everyone.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import NoneType
from typing import Any, Unpack

import attrs

from llmserve.errors import InvalidRequest
from llmserve.structured import StructuredOutputs
from llmserve.tools import Message, Tools
from llmserve.validation.bounds import are_token_ids, as_tuple, instance, integer, number, texts, token_ids, wrong_type
from llmserve.validation.inputs import Input, RequestFields, input_field, split_fields
from llmserve.validation.results import Result, plain
from llmserve.validation.template import check_template_kwargs

# OpenAI's published schema allows 4 stop strings and 20 top logprobs.
MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
# Logprobs of one answer, alternatives included: 45 MB of objects, and 23 MB as the JSON of a chat.
MAX_LOGPROB_ENTRIES = 2**18
MAX_BIASES = 1024
# vLLM's model runner for GPUs has room for 128, the model's own end tokens among them, and one more ends the engine.
MAX_STOP_TOKENS = 64
MAX_ALLOWED_TOKENS = 1024
# Each is encoded twice, as it is and after a space, and compared with the end of the answer at each of its tokens.
MAX_BAD_WORDS = 32
INT64 = 2**63 - 1
# Far above any model's context, low enough to be an int32 everywhere.
MAX_TOKENS_FIELD = 2**31 - 1


def _strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else as_tuple("stop", "a string or a sequence of strings", value)


def _bad_words(value: Sequence[str]) -> tuple[str, ...]:
    return as_tuple("bad_words", "a sequence of strings", value)


def _stop_token_ids(value: Sequence[int]) -> tuple[int, ...]:
    return as_tuple("stop_token_ids", "a sequence of token ids", value)


def _allowed_token_ids(value: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if value is None else as_tuple("allowed_token_ids", "a sequence of token ids or None", value)


def _pairs(value: Mapping[int, float] | Sequence[tuple[int, float]] | None) -> tuple[tuple[int, float], ...]:
    accepted = "a mapping of token ids to numbers"
    pairs = tuple(value.items()) if isinstance(value, Mapping) else as_tuple("logit_bias", accepted, value or ())
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise wrong_type("logit_bias", accepted, value)
    return pairs


@attrs.frozen(kw_only=True)
class Sampling:
    """How to choose tokens and when to stop. `None` leaves the choice to the model's own generation config.

    Attributes:
        max_tokens: most tokens to generate; None means as many as the context still holds.
        min_tokens: no end-of-sequence token before so many tokens.
        temperature: 0 is greedy; at most 2, as OpenAI has it and vLLM 0.32 too.
        top_p, top_k, min_p: cut the distribution's tail; a top_k of 0 or -1 keeps all.
        seed: makes the choice repeatable, signed 64 bits.
        stop: at most 4 strings of at most 256 characters that end the text, left out of it unless `include_stop`.
        logprobs: number of alternatives to report for each token, 0 to 20; None reports nothing. `max_tokens` times (1 + `logprobs`) is at
            most 262,144; where `max_tokens` is None the answer ends there.
        prompt_logprobs: the same for the prompt's tokens.
        stream_interval: tokens in each delta of a stream after its first: fewer deltas, which come later.
        detokenize: False leaves the text of the answer empty, for callers that want token ids alone; it excludes `stop` and tools.
        logit_bias: for at most 1,024 token ids, what is added to their logits, from -100 to 100.
        allowed_token_ids: 1 to 1,024 token ids, of which the answer is made; None allows all. The answer ends at `max_tokens` unless the
            end-of-sequence token is among them.
        bad_words: at most 32 strings of at most 256 characters that the answer must not contain.
        structured_outputs: what the answer must look like.

    Raises:
        InvalidRequest: a value is out of its bounds; `param` names it.
        TypeError: a value is of a type that the field does not accept.
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
    stop: tuple[str, ...] = attrs.field(default=(), converter=_strings, validator=texts(MAX_STOP_STRINGS, MAX_STOP_LENGTH))
    stop_token_ids: tuple[int, ...] = attrs.field(default=(), converter=_stop_token_ids, validator=token_ids(MAX_STOP_TOKENS))
    include_stop: bool = attrs.field(default=False, validator=instance(bool, "True or False"))
    ignore_eos: bool = attrs.field(default=False, validator=instance(bool, "True or False"))
    skip_special_tokens: bool = attrs.field(default=True, validator=instance(bool, "True or False"))
    stream_interval: int = attrs.field(default=1, validator=integer(1, MAX_TOKENS_FIELD))
    detokenize: bool = attrs.field(default=True, validator=instance(bool, "True or False"))
    logprobs: int | None = attrs.field(default=None, validator=integer(0, MAX_LOGPROBS))
    prompt_logprobs: int | None = attrs.field(default=None, validator=integer(0, MAX_LOGPROBS))
    logit_bias: tuple[tuple[int, float], ...] = attrs.field(default=(), converter=_pairs)
    allowed_token_ids: tuple[int, ...] | None = attrs.field(
        default=None, converter=_allowed_token_ids, validator=token_ids(MAX_ALLOWED_TOKENS, least=1)
    )
    bad_words: tuple[str, ...] = attrs.field(default=(), converter=_bad_words, validator=texts(MAX_BAD_WORDS, MAX_STOP_LENGTH))
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
        # A comparison with NaN is false as well.
        if not all(type(bias) in (int, float) and -100 <= bias <= 100 for _, bias in value):
            raise InvalidRequest("logit_bias takes numbers from -100 to 100", "logit_bias")


def _prompt(value: str | Sequence[int] | None) -> str | tuple[int, ...] | None:
    return value if value is None or isinstance(value, str) else as_tuple("prompt", "a string or a sequence of token ids", value)


def _messages(value: Sequence[Mapping[str, Any]] | None) -> tuple[Mapping[str, Any], ...] | None:
    if value is None:
        return None
    accepted = "a sequence of mappings"
    messages = as_tuple("messages", accepted, value)
    if not all(isinstance(message, Mapping) for message in messages):
        raise wrong_type("messages", accepted, next(message for message in messages if not isinstance(message, Mapping)))
    return messages


def _template_kwargs(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping):
        raise wrong_type(attribute.name, "a mapping", value)
    check_template_kwargs(value, attribute.name)


@attrs.frozen
class GenerationRequest:
    """One sequence to generate: a prompt or a conversation, and for whom.

    Attributes:
        prompt: text, or token ids; or
        messages: a conversation in OpenAI's form, rendered with the model's chat template. Exactly one of the two.
        tools: what the model may call; with messages alone.
        template_kwargs: arguments of the chat template; with messages alone (`llmserve.validation.template`).
        adapter: the name of a LoRA adapter of the engine's; None asks the model itself.
        tenant: whom it is counted for.
        priority: smaller goes first, as in vLLM.
        best_effort: when the server's promise cannot be kept, serve it late rather than refuse it.
        deadline: seconds from arrival within which the whole answer must be there, waiting included.
        return_prompt_ids: the stream and the completion have the prompt's token ids, as the engine was given them.
        request_id: unique while the request lives.
        trace_headers: W3C's `traceparent` and `tracestate`, of what this request is part of.
        on_arrival: gets the request's timeline when it arrives; the manager fills it in until the request has ended. It must not raise.

    Raises:
        InvalidRequest: both or none of prompt and messages, an empty one, or a value out of its bounds.
        TypeError: a value is of a type that the field does not accept.
    """

    prompt: str | tuple[int, ...] | None = attrs.field(default=None, converter=_prompt)
    messages: tuple[Mapping[str, Any], ...] | None = attrs.field(default=None, converter=_messages, kw_only=True)
    sampling: Sampling = attrs.field(factory=Sampling, validator=instance(Sampling, "a Sampling"), kw_only=True)
    tools: Tools | None = attrs.field(default=None, validator=instance((Tools, NoneType), "a Tools or None"), kw_only=True)
    template_kwargs: Mapping[str, Any] = attrs.field(factory=dict, validator=_template_kwargs, kw_only=True)
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
            raise InvalidRequest("structured_outputs and tools exclude each other, unless tool_choice is none", "structured_outputs")
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
        """A request for text, token ids or messages, or a copy of a request with `sampling` and `fields` in place of its own.

        `fields` are fields of `Sampling`, each of which replaces one value of the sampling, and fields of this class.

        Raises:
            InvalidRequest: as the constructor does.
            TypeError: `request` or `sampling` is of another type, or there is no such field.
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
        """Which of the two fields holds the prompt, for an error's `param`."""
        return "prompt" if self.messages is None else "messages"


class Outcome(StrEnum):
    """How a request ended: a closed set, fit for a metric's label."""

    COMPLETED = "completed"
    REFUSED = "refused"
    INVALID = "invalid"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"


@attrs.define(kw_only=True)
class Timeline:
    """When each stage of one request happened: monotonic seconds, None where it never did. Every figure comes from these.

    `queued` to `last_token` with the prefix `engine_` are the engine's own readings of the same clock, where it tells them.
    """

    request_id: str = ""
    tenant: str = "default"
    # Only where the engine has one of that name.
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
        """Plain values, by the names of the attributes."""
        return plain(self)


# The garbage collector need not count these two: nothing in them can refer to them, and there may be a quarter of a million of one answer.
class TokenLogprob(Result, frozen=True, gc=False):
    """One token's log probability, with the most likely alternatives, best first; None for a prompt's first token."""

    token_id: int
    token: str
    logprob: float | None
    top: tuple["TokenLogprob", ...] = ()


class Delta(Result, frozen=True, gc=False):
    """What has been generated since the last delta. The last one has a `finish_reason`: "stop" or "length".

    `text` may lag behind `token_ids` while a character or a stop string is incomplete. `logprobs` has one item for each token, and makes
    it when it is read, where several deltas were joined.
    `stop_reason` is the stop string or token id that ended it, where one did.
    `message` is the text taken apart, where the engine does that.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Sequence[TokenLogprob] | None = None
    prompt_logprobs: Sequence[TokenLogprob] | None = None
    message: Message | None = None


class Usage(Result, frozen=True):
    """Tokens that went in and came out. `cached_tokens` of the prompt were found in the engine's prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Completion(Result, frozen=True):
    """A whole answer, or the part of one that an error ended: its `finish_reason` is "abort".

    `message` is its text taken apart, where the engine does that: reasoning, and calls of tools. `prompt_token_ids` are there for a request
    with `return_prompt_ids`.
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
