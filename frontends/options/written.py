"""Writes settings as a TOML file with comments, and describes that file by a JSON Schema."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from frontends.options.definitions import Group, Option, fields_of, help_of, key_of, name_of, options_of, type_of

# Columns of a comment.
WIDTH = 100
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", Path: "string"}


def write(settings: Any, layers: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> str:
    """Return the settings as a file for `--config`; an option without a value is a comment.

    Args:
        settings: an object of a class of settings.
        layers: the sources of its values, the weakest first; other values are defaults.
    """
    return "\n".join(_lines(settings, layers, "")) + "\n"


def _lines(settings: Any, layers: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> Iterator[str]:
    if title:
        yield f"\n# == {title} =="
    for field, described in fields_of(type(settings)):
        value = getattr(settings, field.name)
        if isinstance(described, Group):
            yield from _lines(value, layers, described.title or "")
        elif (name := name_of(field, described)) != "config":
            yield ""
            yield from textwrap.wrap(help_of(field, described), WIDTH, initial_indent="# ", subsequent_indent="# ")
            source = next((source for source, values in reversed(layers) if name in values), "default")
            yield f"# {key_of(name)} =" if value is None else f"{key_of(name)} = {_toml(described, value)}  # {source}"


def _toml(described: Option, value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps([described.write(item) for item in value], ensure_ascii=False)
    if isinstance(value, bool | int | float) and described.write is str:
        return json.dumps(value)
    # A basic string of TOML has the escapes of a JSON string.
    return json.dumps(described.write(value), ensure_ascii=False)


def schema(kind: type) -> dict[str, Any]:
    """Return the JSON Schema of the file for a class of settings."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmserve's settings",
        "type": "object",
        "properties": {key_of(name): _property(*pair) for pair in options_of(kind) if (name := name_of(*pair)) != "config"},
        "additionalProperties": False,
    }


def _property(field: "attrs.Attribute[Any]", described: Option) -> dict[str, Any]:
    kind = JSON_TYPES.get(type_of(field), "string") if described.write is str else "string"
    one: dict[str, Any] = {"type": kind} | ({"enum": list(described.choices)} if described.choices is not None else {})
    return {"description": help_of(field, described), **({"type": "array", "items": one} if described.repeat else one)}
