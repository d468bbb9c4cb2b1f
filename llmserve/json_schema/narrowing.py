"""Converts a JSON Schema so that xgrammar enforces it, and refuses keywords that it cannot enforce.

xgrammar 0.2.8 drops many keywords without an error, so an answer that it calls complete may not
conform. Each rule here was found by compiling schemas and walking the texts that xgrammar accepts;
`tests/vllm/test_vllm_schemas.py` repeats this. Lengths and patterns are rewritten, because xgrammar
puts their matches into a string unchanged, with quotes and control characters. This excludes some
texts that conform, and all texts that do not.
"""

import json
import math
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import attrs

from llmserve.json_schema.derivations import Alternative, Symbol, endings, write
from llmserve.json_schema.one_of import are_disjoint
from llmserve.json_schema.values import (
    CONSTRAINING,
    HEADS,
    MAX_TEXT,
    UnsupportedSchema,
    constants,
    counts,
    nearest_number,
    parse_pattern,
    shortest_string,
    types_of,
    whole_pattern,
)

# Keywords that are always refused. A keyword that JSON Schema does not have does no harm.
REFUSED = {
    **dict.fromkeys(("not", "if", "then", "else"), "it cannot be enforced"),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), "it cannot be enforced"),
    **dict.fromkeys(("contains", "minContains", "maxContains", "multipleOf"), "it cannot be enforced"),
    **dict.fromkeys(
        ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$anchor"), "use $ref with a path such as #/$defs/a"
    ),
    "additionalItems": "use items beside prefixItems",
}
# Keywords that restrict the names of properties.
OF_NAMES = {"enum", "pattern", "minLength", "maxLength"}


@attrs.define(eq=False)
class HeldSchema:
    """An enforceable schema. `narrowed` is its form for xgrammar."""

    narrowed: Any
    _chosen: Mapping[Symbol, Alternative]

    def shortest(self) -> str | None:
        """Return a smallest answer, as JSON in ASCII; None above `MAX_TEXT` characters."""
        return write(self._chosen, _key(self.narrowed), MAX_TEXT)


def hold(schema: Any) -> HeldSchema:
    """Convert `schema` in place, in linear time. Raises UnsupportedSchema."""
    reading = _Reading(schema)
    try:
        reading.read()
    except RecursionError:
        raise UnsupportedSchema("pattern: its groups are nested too deeply") from None
    return HeldSchema(schema, reading.chosen)


def _key(node: Any) -> Symbol:
    """Return the key of a schema's rule."""
    return True if node is True else id(node)


class _Reading:
    """Reads one schema from its root, node by node, without unreferenced parts."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: dict[Symbol, list[Alternative]] = {True: [["{}"]]}
        self._same: dict[Symbol, list[Symbol]] = {}
        self._nodes: list[Any] = []
        self._one_ofs: list[list[Any]] = []
        self.chosen: dict[Symbol, Alternative] = {}

    def read(self) -> None:
        self._visit(self._root)
        while self._nodes:
            node = self._nodes.pop()
            self._rules[_key(node)] = list(self._alternatives(node))
        try:
            TopologicalSorter(self._same).prepare()
        except CycleError:
            raise UnsupportedSchema("$ref: the schema refers to itself directly") from None
        self.chosen = endings(self._rules)
        if len(self.chosen) < len(self._rules):
            raise UnsupportedSchema("$ref: a recursion that cannot end; make a property optional, or allow null")
        for branches in self._one_ofs:
            if not are_disjoint(branches, self.resolve):
                raise UnsupportedSchema("oneOf: its alternatives may overlap; use anyOf, or distinguish them by a required constant")

    def _visit(self, node: Any) -> Symbol:
        """Schedule a node to be read; return the key of its rule."""
        if node is False:
            raise UnsupportedSchema("false: no answer conforms to it")
        if not isinstance(node, (dict, bool)):
            raise UnsupportedSchema(f"a schema is an object or a boolean, not {json.dumps(node)[:40]}")
        key = _key(node)
        if key not in self._rules:
            self._rules[key] = []
            self._nodes.append(node)
        return key

    def _alternatives(self, node: dict[str, Any]) -> Iterator[Alternative]:
        for keyword in node:
            if keyword in REFUSED:
                raise UnsupportedSchema(f"{keyword}: not supported: {REFUSED[keyword]}")
        if "$id" in node and node is not self._root:
            raise UnsupportedSchema("$id: not supported below the root of a schema")
        heads = [head for head in HEADS if head in node]
        if heads:
            yield from self._headed(node, heads[0])
            return
        types = types_of(node)
        if not types:
            yield ["{}"]
        for one in types:
            yield self._of_type(node, one)

    def _of_type(self, node: dict[str, Any], name: str) -> Alternative:
        match name:
            case "object":
                return self._object(node)
            case "array":
                return self._array(node)
            case "string":
                return [shortest_string(node)]
            case "number" | "integer":
                return [nearest_number(node, whole=name == "integer")]
        return ["false" if name == "boolean" else "null"]

    # References, constants and alternatives

    def _headed(self, node: dict[str, Any], head: str) -> Iterator[Alternative]:
        beside = (CONSTRAINING & node.keys()) - {head}
        if beside - {"type"} or (beside and head in ("$ref", "allOf")):
            raise UnsupportedSchema(f"{min(beside - {'type'} or beside)}: not supported beside {head}")
        if head in ("const", "enum"):
            yield from constants(node, head)
            return
        branches = [self.resolve(node)] if head == "$ref" else node[head]
        if not isinstance(branches, list) or not branches:
            raise UnsupportedSchema(f"{head}: takes a non-empty list of schemas")
        if head == "allOf" and len(branches) > 1:
            raise UnsupportedSchema("allOf: supported with a single schema only; merge the keywords into one schema")
        if "type" in beside:
            allowed = set(types_of(node))
            if not all(isinstance(one, dict) and "type" in one and set(types_of(one)) <= allowed for one in branches):
                raise UnsupportedSchema(f"type: supported beside {head} only if each alternative has its own type, which is one of these")
        if head == "oneOf":
            self._one_ofs.append(branches)
        keys = [self._visit(branch) for branch in branches]
        self._same[_key(node)] = keys
        yield from ([key] for key in keys)

    def resolve(self, node: Any) -> Any:
        """Return the schema that the node refers to."""
        reference = node["$ref"]
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise UnsupportedSchema("$ref: takes a path into the same schema, such as #/$defs/a")
        if "~" in reference or "%" in reference:
            raise UnsupportedSchema("$ref: '~' and '%' are not supported in a path; rename the definition")
        found = self._root
        for name in reference.split("/")[1:]:
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, (dict, bool)):
            raise UnsupportedSchema(f"$ref: the schema has nothing at {reference[:64]!r}")
        return found

    # Objects and arrays

    def _object(self, node: dict[str, Any]) -> Alternative:
        properties = _mapping(node, "properties")
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise UnsupportedSchema("required: takes a list of names")
        for name in required:
            if name not in properties:
                raise UnsupportedSchema(f"required: it names {name[:64]!r}, which properties does not have")
        keys = {name: self._visit(value) for name, value in properties.items()}
        named = self._names(node, properties)
        free = self._free(node) or named
        least, most = counts(node, "minProperties", "maxProperties")
        if least and free:
            raise UnsupportedSchema("minProperties: not supported if other property names are allowed, which an answer may repeat")
        if max(least, len(set(required))) > min(most, len(properties) if not free else math.inf):
            raise UnsupportedSchema("minProperties: more than the schema allows")
        shown = set(required)
        for name in properties:
            if len(shown) < least:
                shown.add(name)
        text: list[Symbol] = []
        for name in properties:
            if name in shown:
                text += [", " if text else "", json.dumps(name) + ": ", keys[name]]
        return ["{", *text, "}"]

    def _names(self, node: dict[str, Any], properties: Mapping[str, Any]) -> bool:
        """Whether a pattern restricts the names of further properties; rewrites it for xgrammar."""
        by_pattern = _mapping(node, "patternProperties")
        names = node.get("propertyNames")
        if names is not None and names is not True:
            if properties or by_pattern or False in (node.get("additionalProperties"), node.get("unevaluatedProperties")):
                raise UnsupportedSchema("propertyNames: not supported beside properties, patternProperties or additionalProperties: false")
            if not isinstance(names, dict) or not names.keys() & OF_NAMES or names.setdefault("type", "string") != "string":
                raise UnsupportedSchema("propertyNames: supported with enum, pattern, minLength and maxLength only")
            self._visit(names)
        if by_pattern:
            if properties or len(by_pattern) > 1:
                raise UnsupportedSchema("patternProperties: supported with one pattern, and without properties, only")
            if node.get("additionalProperties", False) is not False:
                raise UnsupportedSchema("additionalProperties: not supported beside patternProperties")
            ((pattern, value),) = by_pattern.items()
            self._visit(value)
            node["patternProperties"] = {whole_pattern(parse_pattern(pattern, "patternProperties")): value}
        return bool(by_pattern) or names is not None

    def _free(self, node: dict[str, Any]) -> bool:
        """Whether other properties than the named ones are allowed."""
        further = [node[name] for name in ("additionalProperties", "unevaluatedProperties") if name in node]
        if len(further) > 1:
            raise UnsupportedSchema("unevaluatedProperties: not supported beside additionalProperties")
        for schema in further:
            if schema is not False:
                self._visit(schema)
        if further:
            return further[0] is not False
        # xgrammar is strict: if the schema names properties, it allows no others.
        return not ({"properties", "patternProperties"} & node.keys())

    def _array(self, node: dict[str, Any]) -> Alternative:
        if node.get("uniqueItems", False) is not False:
            raise UnsupportedSchema("uniqueItems: not supported: it cannot be enforced")
        first = node.get("prefixItems", [])
        if not isinstance(first, list):
            raise UnsupportedSchema("prefixItems: takes a list of schemas")
        further = [node[name] for name in ("items", "unevaluatedItems") if name in node]
        if len(further) > 1:
            raise UnsupportedSchema("unevaluatedItems: not supported beside items")
        least, most = counts(node, "minItems", "maxItems")
        if most < len(first):
            raise UnsupportedSchema("maxItems: less than the number of prefixItems")
        text: list[Symbol] = []
        for key in [self._visit(schema) for schema in first]:
            text += [", " if text else "", key]
        text = text[: 2 * least]
        rest: Any = further[0] if further else not first
        if rest is True and not further:
            # Otherwise xgrammar treats minItems as more than is possible.
            node["items"] = True
        if rest is not False:
            key = self._visit(rest)
            if least > len(first):
                text += ["", key] if not first else []
                text += self._times(key, least - max(1, len(first)))
        elif least > len(first):
            raise UnsupportedSchema("minItems: more than the schema allows")
        return ["[", *text, "]"]

    def _times(self, key: Symbol, count: int) -> list[Symbol]:
        """Return symbols for `count` further items, with one rule for each bit of the number."""
        found: list[Symbol] = []
        for bit in range(count.bit_length()):
            self._rules[key, bit] = [[", ", key] if bit == 0 else [(key, bit - 1)] * 2]
            if count >> bit & 1:
                found.append((key, bit))
        return found


def _mapping(node: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    found = node.get(keyword, {})
    if not isinstance(found, dict):
        raise UnsupportedSchema(f"{keyword}: takes an object of schemas")
    return found
