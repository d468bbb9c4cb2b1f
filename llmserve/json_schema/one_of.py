"""Checks the alternatives of `oneOf`: xgrammar treats it as `anyOf`, so they must not overlap."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def are_disjoint(branches: Sequence[Any], resolve: Callable[[Any], Any]) -> bool:
    """Whether the alternatives cannot overlap.

    They must have different types or constants, or be objects with different values of a required
    constant. They have been checked in other respects, and their references form no cycle.
    """
    types: list[str] = []
    constants: list[tuple[str, str]] = []
    objects: list[Mapping[str, Any]] = []
    for branch in branches:
        node = _at_end(branch, resolve)
        found = _constants(node)
        if found is not None:
            constants += set(map(_constant, found))
        elif not isinstance(node, Mapping):
            return False
        elif node.get("type") == "object" or ("type" not in node and "properties" in node):
            objects.append(node)
        elif "type" in node and "anyOf" not in node and "oneOf" not in node:
            names = [node["type"]] if isinstance(node["type"], str) else node["type"]
            types += {"number" if name == "integer" else name for name in names}
        else:
            return False
    types += ["object"] if objects else []
    distinct = len(set(types)) == len(types) and len(set(constants)) == len(constants)
    if not distinct or {kind for kind, _ in constants} & set(types):
        return False
    return len(objects) < 2 or any(_tells_apart(name, objects, resolve) for name in objects[0].get("properties", {}))


def _at_end(node: Any, resolve: Callable[[Any], Any]) -> Any:
    while isinstance(node, Mapping) and ("$ref" in node or "allOf" in node):
        node = resolve(node) if "$ref" in node else node["allOf"][0]
    return node


def _constants(node: Any) -> Sequence[Any] | None:
    if not isinstance(node, Mapping):
        return None
    return [node["const"]] if "const" in node else node.get("enum")


def _constant(value: Any) -> tuple[str, str]:
    """Return a value's type and text; 1 and 1.0 give the same."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    kind = kinds[type(value)]
    if kind in ("array", "object"):
        # Two of these may be equal although their texts differ.
        return kind, ""
    return kind, json.dumps(float(value) if kind == "number" else value)


def _tells_apart(name: str, objects: Sequence[Mapping[str, Any]], resolve: Callable[[Any], Any]) -> bool:
    seen: set[tuple[str, str]] = set()
    for node in objects:
        constants = _constants(_at_end(node.get("properties", {}).get(name), resolve))
        if constants is None or name not in node.get("required", ()):
            return False
        texts = set(map(_constant, constants))
        if texts & seen:
            return False
        seen |= texts
    return True
