"""The OpenAI wire: what requests look like, and how they become `GenerationRequest`s. Answers are in `openai_answers.py`.

Unknown fields are refused by name, so that nobody believes in an option that does nothing; those that are ignored on
purpose stand in `Ignored`, and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import attrs
import msgspec

from frontends.openai_tools import CallBody, ToolBody, ToolChoice, tools_of
from frontends.sizes import MAX_MESSAGES, MAX_PROMPTS, Undecoded
from frontends.structured import ResponseFormat, StructuredOutputsBody, constraint_of
from llmserve import GenerationRequest, InvalidRequest, ModelNotFound, Sampling, Timeline

# OpenAI's published limit for n; each choice takes a slot of its own, so prompts times n is bounded alike.
MAX_CHOICES = 128

# Under the same name in `Sampling`.
SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop", "min_tokens",
    "stop_token_ids", "ignore_eos", "skip_special_tokens", "stream_interval", "logit_bias",
)  # fmt: skip


@attrs.frozen
class Caller:
    """Who sends a request, as far as its wire tells.

    `tenant` is that of the key that was shown, None where callers name themselves; `key` is the key's id. `deadline` is in seconds. `trace`
    are the headers of the trace that the request is part of. `on_arrival` is each request's (`GenerationRequest`).
    """

    tenant: str | None = None
    key: str | None = None
    deadline: float | None = None
    trace: Mapping[str, str] = attrs.field(factory=dict)
    on_arrival: Callable[[Timeline], None] | None = None


@attrs.frozen(kw_only=True)
class Wanted:
    """What a body asks for. It outlives the body, of which nothing else is kept while the answer is generated.

    Attributes:
        requests: one for each choice, prompt by prompt; `per_prompt` are those of one prompt.
        running_usage: with every event of a stream, not only at its end.
    """

    requests: list[GenerationRequest]
    per_prompt: int
    stream: bool
    usage: bool
    running_usage: bool
    echo: bool = False


class Ignored(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields that OpenAI's clients send and that change nothing here: bookkeeping on OpenAI's side. They are never decoded."""

    store: Undecoded = msgspec.UNSET
    metadata: Undecoded = msgspec.UNSET
    safety_identifier: Undecoded = msgspec.UNSET
    prompt_cache_key: Undecoded = msgspec.UNSET
    prompt_cache_retention: Undecoded = msgspec.UNSET


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    # Padding against traffic analysis: OpenAI's clients may ask for none of it, and there is none.
    include_obfuscation: bool | None = None


class Common(Ignored, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat share: OpenAI's fields, and vLLM's extras under vLLM's names."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream_interval: int | None = None
    logit_bias: dict[int, float] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None
    priority: int | None = None
    # OpenAI's word for being served later at a lower price; the others all mean what is promised to everybody.
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None

    @property
    def choices_per_prompt(self) -> int:
        n = 1 if self.n is None else self.n
        if not 1 <= n <= MAX_CHOICES:
            raise InvalidRequest(f"n must be from 1 to {MAX_CHOICES}", "n")
        return n

    def wanted(self, caller: Caller, adapter: str | None) -> Wanted:
        """Raises InvalidRequest."""
        options = self.stream_options or StreamOptions()
        return Wanted(
            requests=self.generation_requests(caller, adapter),
            per_prompt=self.choices_per_prompt,
            stream=bool(self.stream),
            usage=bool(options.include_usage),
            running_usage=bool(options.continuous_usage_stats),
            echo=isinstance(self, CompletionRequest) and bool(self.echo),
        )

    def generation_requests(self, caller: Caller, adapter: str | None = None) -> list[GenerationRequest]:
        """Raises InvalidRequest."""
        raise NotImplementedError

    def sampling(self, **more: Any) -> Sampling:
        """The fields that are set, and `more`, which may hold None for unset too."""
        by_format = self.response_format is not None and self.structured_outputs is None
        with renamed(structured_outputs="response_format") if by_format else nullcontext():
            more["structured_outputs"] = constraint_of(self.response_format, self.structured_outputs)
        fields = {name: getattr(self, name) for name in SAMPLING_FIELDS} | {"include_stop": self.include_stop_str_in_output} | more
        return Sampling(**{name: value for name, value in fields.items() if value is not None})

    def requests(
        self, prompts: Sequence[dict[str, Any]], sampling: Sampling, caller: Caller, adapter: str | None
    ) -> list[GenerationRequest]:
        """One request for each choice, prompt by prompt; with a seed, each choice of a prompt has the next one."""
        n = self.choices_per_prompt
        if len(prompts) * n > MAX_CHOICES:
            raise InvalidRequest(f"prompts times n must be at most {MAX_CHOICES}", "n")
        common: dict[str, Any] = {
            "deadline": caller.deadline,
            "priority": self.priority or 0,
            "best_effort": self.service_tier == "flex",
            "trace_headers": caller.trace,
            "on_arrival": caller.on_arrival,
            "adapter": adapter,
        }
        # Who shows a key is whom it says; `user` is then the caller's own user, whom this server does not know.
        if caller.tenant or self.user:
            common["tenant"] = caller.tenant or str(self.user)[:64]
        return [GenerationRequest(**prompt, sampling=_nth(sampling, number), **common) for prompt in prompts for number in range(n)]


def _nth(sampling: Sampling, number: int) -> Sampling:
    if number == 0 or sampling.seed is None:
        return sampling
    # Past the end of 64 bits it begins again from the other one.
    return attrs.evolve(sampling, seed=(sampling.seed + number + 2**63) % 2**64 - 2**63)


class CompletionRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions. `prompt` is text or token ids, or a list of either."""

    prompt: str | list[str | int | list[int]] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = None

    def prompts(self) -> list[dict[str, Any]]:
        prompt = self.prompt
        if not prompt:
            raise InvalidRequest("prompt is missing or empty", "prompt")
        if isinstance(prompt, str) or type(prompt[0]) is int:
            return [{"prompt": prompt}]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt takes at most {MAX_PROMPTS} prompts", "prompt")
        kind = type(prompt[0])
        if kind not in (str, list) or any(type(one) is not kind for one in prompt):
            raise InvalidRequest("prompt must be a string, a list of strings, a list of token ids, or a list of such lists", "prompt")
        return [{"prompt": one} for one in prompt]

    def generation_requests(self, caller: Caller, adapter: str | None = None) -> list[GenerationRequest]:
        prompt_logprobs = self.logprobs if self.echo else None
        sampling = self.sampling(max_tokens=self.max_tokens, logprobs=self.logprobs, prompt_logprobs=prompt_logprobs)
        return self.requests(self.prompts(), sampling, caller, adapter)


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer of before as it came, too; what of it templates do not know is left out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    reasoning: str | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates know it: text, calls, and no role newer than they are. Raises InvalidRequest."""
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise InvalidRequest(f"messages: a message of the role {self.role} needs content", "messages")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise InvalidRequest("messages: tool_call_id belongs to a message of the role tool, which needs it", "messages")
        if self.tool_calls is not None and self.role != "assistant":
            raise InvalidRequest("messages: only the assistant makes tool_calls", "messages")
        content = "\n".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            plain["tool_calls"] = [msgspec.to_builtins(call) for call in self.tool_calls]
        return plain | ({"tool_call_id": self.tool_call_id} if self.tool_call_id is not None else {})


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Raises InvalidRequest."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold 1 to {MAX_MESSAGES} messages", "messages")
    # Each call is answered by a message, so there are no more of them in a conversation that makes sense.
    if sum(len(message.tool_calls or ()) for message in messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold at most {MAX_MESSAGES} tool_calls together", "messages")
    return [message.plain() for message in messages]


class ChatRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    def generation_requests(self, caller: Caller, adapter: str | None = None) -> list[GenerationRequest]:
        messages = plain_messages(self.messages)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        with renamed(max_tokens="max_tokens" if self.max_completion_tokens is None else "max_completion_tokens", logprobs="top_logprobs"):
            most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
            sampling = self.sampling(max_tokens=most, logprobs=(self.top_logprobs or 0) if self.logprobs else None)
        tools = tools_of(self.tools, self.tool_choice, self.parallel_tool_calls)
        by_format = self.structured_outputs is None
        with renamed(structured_outputs="response_format") if by_format else nullcontext():
            return self.requests([{"messages": messages, "tools": tools}], sampling, caller, adapter)


class GenerateRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /generate: `GenerationRequest` and `Sampling` in one flat object, under their own names."""

    prompt: str | list[int] | None = None
    messages: list[ChatMessage] | None = None
    stream: bool = False
    tenant: str | None = None
    priority: int = 0
    deadline: float | None = None
    best_effort: bool = False
    adapter: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = []
    include_stop: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream_interval: int = 1
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    structured_outputs: StructuredOutputsBody | None = None

    def generation_request(self, caller: Caller) -> GenerationRequest:
        """Raises InvalidRequest, also for a tenant that the caller's key is not for."""
        fields = msgspec.structs.asdict(self)
        del fields["stream"]
        request: dict[str, Any] = {
            name: fields.pop(name) for name in ("prompt", "messages", "tenant", "priority", "deadline", "best_effort", "adapter")
        }
        if self.messages is not None:
            request["messages"] = plain_messages(self.messages)
        request["deadline"] = caller.deadline if self.deadline is None else self.deadline
        if caller.tenant and self.tenant not in (None, caller.tenant):
            raise InvalidRequest("this API key is not for this tenant", "tenant")
        request["tenant"] = caller.tenant or (self.tenant or "default")[:64]
        fields["structured_outputs"] = constraint_of(None, self.structured_outputs)
        request["on_arrival"] = caller.on_arrival
        return GenerationRequest(**request, sampling=Sampling(**fields), trace_headers=caller.trace)


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None

    def generation_request(self) -> GenerationRequest:
        messages = None if self.messages is None else plain_messages(self.messages)
        return GenerationRequest(self.prompt, messages=messages)


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class renamed:  # noqa: N801 - reads as a phrase, like contextlib's own
    """Inside it, an InvalidRequest about a field of ours is about the caller's field of another name."""

    def __init__(self, **names: str) -> None:
        self._names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidRequest) and error.param in self._names:
            name = self._names[error.param]
            raise InvalidRequest(str(error).replace(error.param, name), name) from None


def adapter_of(model: str | None, served: str, adapters: Sequence[str]) -> str | None:
    """Which of the served model's adapters is asked for; None for itself, which no model at all means too. Raises ModelNotFound."""
    if model is None or model == served:
        return None
    if model not in adapters:
        raise ModelNotFound(model, served)
    return model
