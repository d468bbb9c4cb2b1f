"""Compares two objects of a class of settings, and takes single options from one into the other."""

from collections.abc import Collection
from typing import Any, TypeVar

import attrs

from frontends.options.definitions import Group, Option, fields_of, key_of, make, name_of

Settings = TypeVar("Settings")


@attrs.frozen
class Change:
    """An option that differs between two settings."""

    name: str
    described: Option
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{key_of(self.name)}: {self._text(self.old)} -> {self._text(self.new)}"

    def _text(self, value: Any) -> str:
        return "not set" if value is None else self.described.write(value)


def changes(old: Any, new: Any) -> list[Change]:
    """Return the options whose values differ between two objects of one class, in the order of the help."""
    found: list[Change] = []
    for field, described in fields_of(type(old)):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if isinstance(described, Group):
            found += changes(before, after)
        elif before != after:
            found.append(Change(name_of(field, described), described, before, after))
    return found


def with_options(settings: Settings, other: Settings, names: Collection[str]) -> Settings:
    """Return the settings, with the options of these names as in `other`."""
    values = _values(settings) | {name: value for name, value in _values(other).items() if name in names}
    return make(type(settings), values)


def _values(settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field, described in fields_of(type(settings)):
        value = getattr(settings, field.name)
        values |= _values(value) if isinstance(described, Group) else {name_of(field, described): value}
    return values
