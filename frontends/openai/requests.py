"""What requests in OpenAI's format share, and the body of /generate.

An unknown field is refused by name, so that no client relies on an option without effect.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import attrs
import msgspec

from frontends.access.caller import Caller
from frontends.openai.messages import ChatMessage, plain_messages
from frontends.openai.response_format import StructuredOutputsBody, constraint_of
from frontends.openai.sampling import MAX_CHOICES, SamplingBody
from frontends.openai.sizes import Undecoded
from frontends.openai.unsupported import Unsupported
from frontends.openai.wanted import ParsedBody, renamed
from llmserve import GenerationRequest, InvalidRequest, ModelNotFound, Sampling
from llmserve.images.parts import MAX_IMAGES, images

# Fields with the same name in `GenerationRequest`.
REQUEST_FIELDS = (
    "prompt", "messages", "add_special_tokens", "truncate_prompt_tokens", "truncation_side", "tenant", "priority", "deadline",
    "best_effort", "adapter",
)  # fmt: skip


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    # Padding against traffic analysis. The server never adds any, so clients may only disable it.
    include_obfuscation: bool | None = None


class Common(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """Fields that completions and chat share: OpenAI's, and vLLM's extras under vLLM's names."""

    # OpenAI's bookkeeping, which has no effect here and is never decoded.
    store: Undecoded = msgspec.UNSET
    metadata: Undecoded = msgspec.UNSET
    safety_identifier: Undecoded = msgspec.UNSET
    prompt_cache_key: Undecoded = msgspec.UNSET
    prompt_cache_retention: Undecoded = msgspec.UNSET
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: int | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    # `flex` is OpenAI's tier for later service at a lower price. All other values mean the normal
    # service.
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None

    def extras(self) -> dict[str, Any]:
        """Return the attributes of `ParsedBody` that only this route sets."""
        return {}

    def wanted(self, caller: Caller, adapter: str | None) -> ParsedBody:
        """Return the parsed content of this body. Raises InvalidRequest."""
        if not self.stream:
            self._check_whole()
        elif self.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs requires stream to be false", "prompt_logprobs")
        options = self.stream_options or StreamOptions()
        return ParsedBody(
            requests=self.generation_requests(caller, adapter),
            per_prompt=self.choices_per_prompt,
            stream=bool(self.stream),
            usage=bool(options.include_usage),
            running_usage=bool(options.include_usage and options.continuous_usage_stats),
            names=self.names() | caller.names,
            by_id=bool(self.return_tokens_as_token_ids),
            token_ids=bool(self.return_token_ids),
            prompt_logprobs=self.prompt_logprobs is not None,
            **self.extras(),
        )

    def _check_whole(self) -> None:
        if self.stream_options is not None:
            raise InvalidRequest("stream_options requires stream to be true", "stream_options")

    def generation_requests(self, caller: Caller, adapter: str | None = None) -> list[GenerationRequest]:
        """Return one request per choice, prompt by prompt. Raises InvalidRequest."""
        raise NotImplementedError

    def requests(
        self, prompts: Sequence[dict[str, Any]], sampling: Sampling, caller: Caller, adapter: str | None
    ) -> list[GenerationRequest]:
        """Return one request per choice, prompt by prompt.

        With a seed, each further choice of a prompt has the next seed.
        """
        n = self.choices_per_prompt
        if len(prompts) * n > MAX_CHOICES:
            raise InvalidRequest(f"prompts times n must be at most {MAX_CHOICES}", "n")
        # Each choice decodes its images.
        if (count := n * sum(len(images(prompt.get("messages"))) for prompt in prompts)) > MAX_IMAGES:
            raise InvalidRequest(f"images times n must be at most {MAX_IMAGES}, not {count}", "n")
        common: dict[str, Any] = {
            "deadline": caller.deadline,
            "priority": self.priority or 0,
            "best_effort": self.service_tier == "flex",
            "trace_headers": caller.trace,
            "on_arrival": caller.on_arrival,
            "adapter": adapter,
            "return_prompt_ids": bool(self.return_token_ids),
            "add_special_tokens": self.add_special_tokens,
            "truncate_prompt_tokens": self.truncate_prompt_tokens,
            "truncation_side": self.truncation_side or "left",
        }
        # An API key determines the tenant. `user` is then a user of the client, whom this server
        # does not know.
        if caller.tenant or self.user:
            common["tenant"] = caller.tenant or str(self.user)[:64]
        with renamed(**caller.names):
            return [GenerationRequest(**prompt, sampling=nth(sampling, number), **common) for prompt in prompts for number in range(n)]


def nth(sampling: Sampling, number: int) -> Sampling:
    """Return the sampling of a prompt's choice: with a seed, each further one has the next seed."""
    if number == 0 or sampling.seed is None:
        return sampling
    # Seeds wrap around at the end of 64 bits.
    return attrs.evolve(sampling, seed=(sampling.seed + number + 2**63) % 2**64 - 2**63)


class GenerateRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /generate: the fields of `GenerationRequest` and `Sampling` together."""

    # Empty. The attribute makes the decoder accept 16.0 as 16, as on the other routes
    # (`frontends/openai/unsupported.py`).
    unsupported: ClassVar[Unsupported] = {}

    prompt: str | list[int] | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] = "left"
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
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    structured_outputs: StructuredOutputsBody | None = None

    def generation_request(self, caller: Caller) -> GenerationRequest:
        """Return the request. Raises InvalidRequest, also for a tenant other than the API key's."""
        fields = msgspec.structs.asdict(self)
        del fields["stream"]
        request: dict[str, Any] = {name: fields.pop(name) for name in REQUEST_FIELDS}
        if self.messages is not None:
            request["messages"] = plain_messages(self.messages)
        request["deadline"] = caller.deadline if self.deadline is None else self.deadline
        if caller.tenant and self.tenant not in (None, caller.tenant):
            raise InvalidRequest("the API key does not belong to this tenant", "tenant")
        request["tenant"] = caller.tenant or (self.tenant or "default")[:64]
        fields["structured_outputs"] = constraint_of(None, self.structured_outputs)
        request["on_arrival"] = caller.on_arrival
        with renamed(**caller.names if self.deadline is None else {}):
            return GenerationRequest(**request, sampling=Sampling(**fields), trace_headers=caller.trace)


def adapter_of(model: str | None, served: str, adapters: Sequence[str]) -> str | None:
    """Return the adapter that a request names; None for the served model. Raises ModelNotFound.

    A request without a model means the served model.
    """
    if model is None or model == served:
        return None
    if model not in adapters:
        raise ModelNotFound(model, served)
    return model
