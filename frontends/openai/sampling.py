"""The fields of a body that become `Sampling`: OpenAI's, and vLLM's extras under vLLM's names."""

from typing import Any

import msgspec

from frontends.openai.logit_bias import biases_of
from frontends.openai.response_format import ResponseFormat, StructuredOutputsBody, constraint_of
from frontends.openai.wanted import renamed
from llmserve import InvalidRequest, Sampling

# OpenAI's published limit for n. Each choice takes a slot, so prompts times n has the same limit.
MAX_CHOICES = 128

# Fields with the same name in `Sampling`.
SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop", "min_tokens",
    "stop_token_ids", "ignore_eos", "skip_special_tokens", "stream_interval", "allowed_token_ids", "bad_words",
)  # fmt: skip


class SamplingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields, without those that differ between routes."""

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream_interval: int | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None

    @property
    def choices_per_prompt(self) -> int:
        n = 1 if self.n is None else self.n
        if not 1 <= n <= MAX_CHOICES:
            raise InvalidRequest(f"n must be from 1 to {MAX_CHOICES}", "n")
        return n

    def names(self) -> dict[str, str]:
        """Return the client's field names by the library's names, where these differ."""
        by_format = self.response_format is not None and self.structured_outputs is None
        return {"structured_outputs": "response_format"} if by_format else {}

    def sampling(self, **more: Any) -> Sampling:
        """Return the sampling parameters of the fields and of `more`, where None means unset."""
        with renamed(**self.names()):
            more["structured_outputs"] = constraint_of(self.response_format, self.structured_outputs)
        fields = {name: getattr(self, name) for name in SAMPLING_FIELDS} | more
        fields |= {"include_stop": self.include_stop_str_in_output, "logit_bias": biases_of(self.logit_bias)}
        return Sampling(**{name: value for name, value in fields.items() if value is not None})
