"""Inputs other than a `GenerationRequest`: text, token ids or messages, and single fields."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from llmserve.validation.bounds import as_tuple, wrong_type

if TYPE_CHECKING:
    from llmserve.request import Timeline
    from llmserve.structured import StructuredOutputs
    from llmserve.tools import Tools

# Messages are mappings in OpenAI's form, with `role` and `content`.
Input = str | Sequence[int] | Sequence[Mapping[str, Any]]
ACCEPTED = "text, a sequence of token ids, a sequence of messages (mappings with role and content) or a GenerationRequest"


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`."""

    max_tokens: int | None
    min_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    skip_special_tokens: bool
    stream_interval: int
    detokenize: bool
    logprobs: int | None
    prompt_logprobs: int | None
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None
    allowed_token_ids: Sequence[int] | None
    bad_words: Sequence[str]
    structured_outputs: "StructuredOutputs | None"


class RequestFields(SamplingFields, total=False):
    """The fields of `Sampling` and `GenerationRequest`, without prompt, messages and sampling."""

    tools: "Tools | None"
    template_kwargs: Mapping[str, Any]
    add_special_tokens: bool | None
    truncate_prompt_tokens: int | None
    truncation_side: str
    adapter: str | None
    tenant: str
    priority: int
    deadline: float | None
    best_effort: bool
    return_prompt_ids: bool
    request_id: str
    trace_headers: Mapping[str, str]
    on_arrival: "Callable[[Timeline], None] | None"


def input_field(value: Input) -> dict[str, Any]:
    """Return the field of `GenerationRequest` for an input. The TypeError lists accepted types."""
    if isinstance(value, str):
        return {"prompt": value}
    if value is None or isinstance(value, type):
        raise wrong_type("request", ACCEPTED, value)
    items = as_tuple("request", ACCEPTED, value)
    if items and isinstance(items[0], Mapping):
        return {"messages": items}
    if items and type(items[0]) is not int:
        raise TypeError(f"request must be {ACCEPTED}, not a sequence of {type(items[0]).__name__}")
    return {"prompt": items}


def split_fields(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split fields into those of `Sampling` and the others. Raises TypeError for other names."""
    of_sampling: dict[str, Any] = {}
    of_request: dict[str, Any] = {}
    for name, value in fields.items():
        if name in SamplingFields.__annotations__:
            of_sampling[name] = value
        elif name in RequestFields.__annotations__:
            of_request[name] = value
        else:
            raise TypeError(f"unknown field {name!r}; the fields are {', '.join(RequestFields.__annotations__)}")
    return of_sampling, of_request
