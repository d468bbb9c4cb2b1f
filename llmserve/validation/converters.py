"""Converters of the fields of requests and samplings to tuples, each named after its field.

They raise TypeError for a value of another type. Validators check bounds later.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.validation.bounds import as_tuple, wrong_type


def stop(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else as_tuple("stop", "a string or a sequence of strings", value)


def bad_words(value: Sequence[str]) -> tuple[str, ...]:
    return as_tuple("bad_words", "a sequence of strings", value)


def stop_token_ids(value: Sequence[int]) -> tuple[int, ...]:
    return as_tuple("stop_token_ids", "a sequence of token ids", value)


def allowed_token_ids(value: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if value is None else as_tuple("allowed_token_ids", "a sequence of token ids or None", value)


def logit_bias(value: Mapping[int, float] | Sequence[tuple[int, float]] | None) -> tuple[tuple[int, float], ...]:
    accepted = "a mapping of token ids to numbers"
    found = tuple(value.items()) if isinstance(value, Mapping) else as_tuple("logit_bias", accepted, value or ())
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in found):
        raise wrong_type("logit_bias", accepted, value)
    return found


def prompt(value: str | Sequence[int] | None) -> str | tuple[int, ...] | None:
    return value if value is None or isinstance(value, str) else as_tuple("prompt", "a string or a sequence of token ids", value)


def messages(value: Sequence[Mapping[str, Any]] | None) -> tuple[Mapping[str, Any], ...] | None:
    if value is None:
        return None
    accepted = "a sequence of mappings"
    found = as_tuple("messages", accepted, value)
    if not all(isinstance(message, Mapping) for message in found):
        raise wrong_type("messages", accepted, next(message for message in found if not isinstance(message, Mapping)))
    return found
