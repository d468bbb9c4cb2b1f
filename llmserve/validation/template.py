"""Checks the arguments of a chat template that a request may set."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmserve.errors import InvalidRequest
from llmserve.validation.bounds import wrong_type

if TYPE_CHECKING:
    import attrs

# Published templates have about ten variables. The texts among them are dates and names.
MAX_ARGUMENTS = 32
MAX_TEXT = 1024
# Names that pass the conversation, the tools and the engine's settings, and parameters of
# transformers' apply_chat_template that change what it returns.
RESERVED = frozenset({
    "chat_template", "conversation", "documents", "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip


def check_template_kwargs(arguments: Mapping[str, Any], field: str) -> None:
    """Raise InvalidRequest unless there are only a few scalars.

    A template is a program, and its time grows with the lists that it iterates over.
    """
    if len(arguments) > MAX_ARGUMENTS:
        raise InvalidRequest(f"{field} takes at most {MAX_ARGUMENTS} arguments", field)
    for name, value in arguments.items():
        if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_TEXT:
            raise InvalidRequest(f"{field}: the name of an argument must be an identifier", field)
        if name in RESERVED:
            raise InvalidRequest(f"{field} cannot set {name}, which the server sets", field)
        if not (value is None or isinstance(value, (bool, int, float, str))) or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidRequest(f"{field}: {name} must be a string, a finite number, true, false or null", field)
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise InvalidRequest(f"{field}: {name} has more than {MAX_TEXT} characters", field)


def template_kwargs(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    """Validate the field of a request. Raises InvalidRequest, and TypeError unless it is a mapping."""
    if not isinstance(value, Mapping):
        raise wrong_type(attribute.name, "a mapping", value)
    check_template_kwargs(value, attribute.name)
