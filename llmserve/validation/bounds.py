"""Validators of types, numbers and lists. Their errors name the attribute."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmserve.errors import InvalidRequest

if TYPE_CHECKING:
    import attrs


def integer(low: int, high: int) -> Any:
    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value is None:
            return
        if type(value) is not int or not low <= value <= high:
            raise InvalidRequest(f"{attribute.name} must be a whole number from {low} to {high}", attribute.name)

    return check


def number(low: float, high: float, *, above: bool = False) -> Any:
    """Finite and within [low, high], or (low, high] where `above` is set."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value is None:
            return
        name = attribute.name
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InvalidRequest(f"{name} must be a finite number", name)
        if not low <= value <= high or (above and value == low):
            bounds = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise InvalidRequest(f"{name} must be {bounds}", name)

    return check


def are_token_ids(values: Sequence[object]) -> bool:
    """Whether all are whole numbers and none is negative; True and False are not, although Python counts them as whole numbers."""
    return all(type(value) is int and value >= 0 for value in values)


def token_ids(most: int, *, least: int = 0) -> Any:
    """A validator of attrs: `least` to `most` token ids, or None. Raises InvalidRequest that names the field."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...] | None) -> None:
        if value is not None and not (least <= len(value) <= most and are_token_ids(value)):
            count = f"at most {most:,}" if least == 0 else f"{least} to {most:,}"
            raise InvalidRequest(f"{attribute.name} takes {count} token ids, none negative", attribute.name)

    return check


def instance(kinds: type | tuple[type, ...], accepted: str) -> Any:
    """A validator: TypeError that says what is `accepted`, for what only the program's author can get wrong."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if not isinstance(value, kinds):
            raise wrong_type(attribute.name, accepted, value)

    return check


def texts(most: int, longest: int) -> Any:
    """At most `most` strings of 1 to `longest` characters."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
        name = attribute.name
        if len(value) > most:
            raise InvalidRequest(f"{name} takes at most {most:,} strings", name)
        if not all(isinstance(text, str) and 0 < len(text) <= longest for text in value):
            raise InvalidRequest(f"each string of {name} must have 1 to {longest:,} characters", name)

    return check


def wrong_type(name: str, accepted: str, value: object) -> TypeError:
    """The error for an argument whose type is not `accepted`, which is in words."""
    return TypeError(f"{name} must be {accepted}, not {type(value).__name__}")


def as_tuple(name: str, accepted: str, value: Any) -> tuple[Any, ...]:
    """Of a sequence; TypeError names the field."""
    if isinstance(value, (str, bytes, Mapping)):
        raise wrong_type(name, accepted, value)
    try:
        return tuple(value)
    except TypeError:
        raise wrong_type(name, accepted, value) from None
