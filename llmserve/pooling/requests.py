"""A request for a vector: an embedding, or the scores of a classifier."""

from collections.abc import Callable, Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import attrs

from llmserve.errors import InvalidRequest
from llmserve.request import MAX_TOKENS_FIELD, GenerationRequest
from llmserve.validation.bounds import instance, integer, one_of
from llmserve.validation.inputs import Input, input_field

if TYPE_CHECKING:
    from llmserve.request import Timeline

# The tasks of pooling models that the library knows. Other models generate.
EMBED, CLASSIFY = "embed", "classify"
GENERATE = "generate"


class PoolingFields(TypedDict, total=False):
    """The fields of `PoolingRequest`, without prompt and messages."""

    task: str | None
    pair: str | None
    dimensions: int | None
    activation: bool | None
    add_special_tokens: bool | None
    truncate_prompt_tokens: int | None
    truncation_side: str | None
    adapter: str | None
    tenant: str
    priority: int
    deadline: float | None
    best_effort: bool
    request_id: str
    trace_headers: Mapping[str, str]
    on_arrival: "Callable[[Timeline], None] | None"


@attrs.frozen(kw_only=True)
class Pooling:
    """What the engine makes of a prompt.

    Attributes:
        task: "embed" or "classify".
        dimensions: Number of the vector's first elements to return; None returns all.
        activation: Whether the model normalises its vector, or makes probabilities of its scores.
            None selects the model's default.
        second: Number of the first token of the pair's second text, for a model that tells the two
            texts apart.
    """

    task: str
    dimensions: int | None = None
    activation: bool | None = None
    second: int | None = None


@attrs.frozen
class PoolingRequest(GenerationRequest):
    """A request for the vector of a prompt; `EngineManager.embed()` makes one from its arguments.

    The fields of `GenerationRequest` have the same meaning here, but `sampling` and `tools` have
    none.

    Attributes:
        task: "embed" or "classify". None selects what the model does.
        pair: A second text, which the model reads together with the prompt; only for "classify".
        dimensions: Number of elements of the vector, for a model that allows it. None returns all.
        activation: Whether the model normalises its vector, or makes probabilities of its scores.
            None selects the model's default.
        truncation_side: "left" and "right" as for generation. None lets the tokenizer remove tokens
            from its own side, and keep its special tokens.

    Raises:
        InvalidRequest: As in `GenerationRequest`.
        TypeError: As in `GenerationRequest`.
    """

    task: str | None = attrs.field(default=None, validator=one_of(EMBED, CLASSIFY, None), kw_only=True)
    pair: str | None = attrs.field(default=None, validator=instance((str, NoneType), "a string or None"), kw_only=True)
    dimensions: int | None = attrs.field(default=None, validator=integer(1, MAX_TOKENS_FIELD), kw_only=True)
    activation: bool | None = attrs.field(default=None, validator=instance((bool, NoneType), "True, False or None"), kw_only=True)
    truncation_side: str | None = attrs.field(default=None, validator=one_of("left", "right", None), kw_only=True)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.pair is not None and not (isinstance(self.prompt, str) and self.task == CLASSIFY):
            raise InvalidRequest("pair needs the task classify and a text as the prompt", "pair")

    @classmethod
    def made_of(cls, request: "PoolingRequest | Input", **fields: Unpack[PoolingFields]) -> "PoolingRequest":
        """Make a request from text, token ids or messages, or a copy of a request with changes.

        Raises TypeError for an unknown field, and what the constructor raises.
        """
        unknown = fields.keys() - PoolingFields.__annotations__.keys()
        if unknown:
            raise TypeError(f"unknown field {min(unknown)!r}; the fields are {', '.join(PoolingFields.__annotations__)}")
        named: dict[str, Any] = dict(fields)
        if isinstance(request, PoolingRequest):
            return attrs.evolve(request, **named) if named else request
        if isinstance(request, GenerationRequest):
            raise TypeError("request must be a PoolingRequest or its input, not a GenerationRequest")
        return cls(**input_field(request), **named)


def pair_of(request: GenerationRequest) -> str | None:
    """Return the second text of a request, or None."""
    return request.pair if isinstance(request, PoolingRequest) else None
