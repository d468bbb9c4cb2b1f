"""Validators of types, numbers and sequences. Their errors name the attribute."""

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
    """Validate a finite number in [low, high], or in (low, high] with `above`."""

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
    """Whether all values are whole numbers of at least 0; True and False do not count."""
    return all(type(value) is int and value >= 0 for value in values)


def token_ids(most: int, *, least: int = 0) -> Any:
    """Validate `least` to `most` token ids, or None. The InvalidRequest names the field."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...] | None) -> None:
        if value is not None and not (least <= len(value) <= most and are_token_ids(value)):
            count = f"at most {most:,}" if least == 0 else f"{least} to {most:,}"
            raise InvalidRequest(f"{attribute.name} takes {count} token ids, none negative", attribute.name)

    return check


def one_of(*values: str | None) -> Any:
    """Validate one of a few strings, or None if it is among them. The InvalidRequest lists them."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value not in values:
            raise InvalidRequest(f"{attribute.name} must be {' or '.join(map(str, values))}", attribute.name)

    return check


def instance(kinds: type | tuple[type, ...], accepted: str) -> Any:
    """Validate a type. Raises TypeError: only the program's author can get it wrong.

    The error says what is `accepted`.
    """

    def check(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if not isinstance(value, kinds):
            raise wrong_type(attribute.name, accepted, value)

    return check


def texts(most: int, longest: int) -> Any:
    """Validate at most `most` strings of 1 to `longest` characters."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
        name = attribute.name
        if len(value) > most:
            raise InvalidRequest(f"{name} takes at most {most:,} strings", name)
        if not all(isinstance(text, str) and 0 < len(text) <= longest for text in value):
            raise InvalidRequest(f"each string of {name} must have 1 to {longest:,} characters", name)

    return check


def wrong_type(name: str, accepted: str, value: object) -> TypeError:
    """Return the error for an argument of a wrong type; `accepted` describes the right ones."""
    return TypeError(f"{name} must be {accepted}, not {type(value).__name__}")


def as_tuple(name: str, accepted: str, value: Any) -> tuple[Any, ...]:
    """Convert a sequence to a tuple. Raises TypeError, which names the field."""
    if isinstance(value, (str, bytes, Mapping)):
        raise wrong_type(name, accepted, value)
    try:
        return tuple(value)
    except TypeError:
        raise wrong_type(name, accepted, value) from None
