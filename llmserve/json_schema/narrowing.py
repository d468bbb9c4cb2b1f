"""Converts a JSON Schema so that xgrammar enforces it, and refuses keywords that it cannot enforce.

xgrammar 0.2.8 drops many keywords without an error, so an answer that it calls complete may not
conform. Each rule here was found by compiling schemas and walking the texts that xgrammar accepts;
`tests/vllm/test_vllm_schemas.py` repeats this. Lengths and patterns are rewritten, because xgrammar
puts their matches into a string unchanged, with quotes and control characters. This excludes some
texts that conform, and all texts that do not.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import attrs

from llmserve.json_schema.derivations import Alternative, Symbol, endings, write
from llmserve.json_schema.one_of import are_disjoint
from llmserve.json_schema.patterns import Part, any_text, parse

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
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
HEADS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
OF_OBJECTS = {
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties", "unevaluatedProperties"),
}
OF_ARRAYS = {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"}
OF_STRINGS = {"minLength", "maxLength", "pattern", "format"}
_OF_NAMES = {"enum", "pattern", "minLength", "maxLength"}
OF_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
CONSTRAINING = {*HEADS, "type", *OF_OBJECTS, *OF_ARRAYS, *OF_STRINGS, *OF_NUMBERS}
# Formats that xgrammar enforces, each with its shortest answer. xgrammar ignores other formats, as
# JSON Schema allows.
FORMATS = {
    "email": "a@a.aa",
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "ipv4": "0.0.0.0",  # noqa: S104 - no address to listen at
    "ipv6": "::",
    "hostname": "a",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "a:a",
    "uri-reference": "a",
    "uri-template": "a",
}
# xgrammar's grammars for these formats accept raw quotes and control characters.
REFUSED_FORMATS = ("json-pointer", "relative-json-pointer")
# Largest whole number that a float holds exactly, and number of digits of a fraction that xgrammar
# reads.
MAX_NUMBER = 2**53
FRACTION_DIGITS = 6
# Maximum length of a smallest answer in characters, and a text that is longer.
MAX_TEXT = 16_384
TOO_LONG = "a" * (MAX_TEXT + 1)
# If a pattern repeats more often, xgrammar 0.2.8 looks at the vocabulary at each token of the
# answer: 20 to 30 ms of CPU with 49,152 tokens, in a step that all requests share. Its own length
# bound costs 0.2 ms there, so longer bounds are not rewritten. Under them a model may write a
# control character that JSON does not allow.
MAX_REPETITIONS = 128


class UnsupportedSchema(ValueError):
    """The schema cannot be enforced. The message names the keyword."""


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
        types = _types(node)
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
                return [_string(node)]
            case "number" | "integer":
                return [_number(node, whole=name == "integer")]
        return ["false" if name == "boolean" else "null"]

    # References, constants and alternatives

    def _headed(self, node: dict[str, Any], head: str) -> Iterator[Alternative]:
        beside = (CONSTRAINING & node.keys()) - {head}
        if beside - {"type"} or (beside and head in ("$ref", "allOf")):
            raise UnsupportedSchema(f"{min(beside - {'type'} or beside)}: not supported beside {head}")
        if head in ("const", "enum"):
            yield from _constants(node, head)
            return
        branches = [self.resolve(node)] if head == "$ref" else node[head]
        if not isinstance(branches, list) or not branches:
            raise UnsupportedSchema(f"{head}: takes a non-empty list of schemas")
        if head == "allOf" and len(branches) > 1:
            raise UnsupportedSchema("allOf: supported with a single schema only; merge the keywords into one schema")
        if "type" in beside:
            allowed = set(_types(node))
            if not all(isinstance(one, dict) and "type" in one and set(_types(one)) <= allowed for one in branches):
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
        least, most = _counts(node, "minProperties", "maxProperties")
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
            if not isinstance(names, dict) or not names.keys() & _OF_NAMES or names.setdefault("type", "string") != "string":
                raise UnsupportedSchema("propertyNames: supported with enum, pattern, minLength and maxLength only")
            self._visit(names)
        if by_pattern:
            if properties or len(by_pattern) > 1:
                raise UnsupportedSchema("patternProperties: supported with one pattern, and without properties, only")
            if node.get("additionalProperties", False) is not False:
                raise UnsupportedSchema("additionalProperties: not supported beside patternProperties")
            ((pattern, value),) = by_pattern.items()
            self._visit(value)
            node["patternProperties"] = {_whole(_pattern(pattern, "patternProperties")): value}
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
        least, most = _counts(node, "minItems", "maxItems")
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


def _types(node: Mapping[str, Any]) -> Sequence[str]:
    """Return the types of a schema without alternatives; empty if any value conforms."""
    if "type" not in node:
        found = CONSTRAINING & node.keys()
        for families, marks, name in (
            (OF_OBJECTS, {"properties", "additionalProperties"}, "object"),
            (OF_ARRAYS, {"items", "prefixItems"}, "array"),
        ):
            if found & marks and found <= families:
                return [name]
        for keyword in sorted(found - set(HEADS)):
            raise UnsupportedSchema(f"{keyword}: supported beside type only")
        return []
    types = [node["type"]] if isinstance(node["type"], str) else node["type"]
    if not isinstance(types, list) or not types or not all(one in TYPES for one in types):
        raise UnsupportedSchema(f"type: takes one of {', '.join(TYPES)}, or a list of them, not {json.dumps(node['type'])[:60]}")
    return types


def _constants(node: Mapping[str, Any], head: str) -> Iterator[Alternative]:
    values = [node["const"]] if head == "const" else node["enum"]
    if not isinstance(values, list) or not values:
        raise UnsupportedSchema("enum: takes a non-empty list of values")
    types = _types(node) if "type" in node else ()
    for value in values:
        if types and not any(_IS[one](value) for one in types):
            raise UnsupportedSchema(f"type: {head} has the value {json.dumps(value)[:40]}, which is of another type")
        inside = [value]
        while inside:
            one = inside.pop()
            if isinstance(one, (int, float)) and abs(one) > MAX_NUMBER:
                raise UnsupportedSchema(f"{head}: {str(one)[:40]} is beyond 2^53")
            inside += one if isinstance(one, list) else one.values() if isinstance(one, dict) else ()
        yield [json.dumps(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_IS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == int(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def _mapping(node: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    found = node.get(keyword, {})
    if not isinstance(found, dict):
        raise UnsupportedSchema(f"{keyword}: takes an object of schemas")
    return found


def _counts(node: Mapping[str, Any], lower: str, upper: str) -> tuple[int, float]:
    """Return the bounds. Raises UnsupportedSchema if they are invalid or exclude all numbers."""
    for keyword in (lower, upper):
        value = node.get(keyword, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise UnsupportedSchema(f"{keyword}: takes a whole number from 0 to 2^31, not {json.dumps(value)[:40]}")
    least, most = node.get(lower, 0), node.get(upper, math.inf)
    if least > most:
        raise UnsupportedSchema(f"{lower}: greater than {upper}")
    return least, most


def _string(node: dict[str, Any]) -> str:
    """Return a shortest text as JSON; merge the node's lengths and pattern into one pattern."""
    kind = node.get("format")
    if kind is not None and not isinstance(kind, str):
        raise UnsupportedSchema("format: takes a name")
    if kind in REFUSED_FORMATS:
        raise UnsupportedSchema(f"format: {kind!r} is not supported: it cannot be enforced")
    beside = [keyword for keyword in ("pattern", "minLength", "maxLength") if keyword in node]
    if kind in FORMATS:
        if beside:
            raise UnsupportedSchema(f"{beside[0]}: not supported beside format {kind!r}")
        return f'"{FORMATS[kind]}"'
    node.pop("format", None)
    least, most = _counts(node, "minLength", "maxLength")
    part = any_text(least, None if most == math.inf else int(most))
    if "pattern" in node:
        part = _pattern(node["pattern"], "pattern")
        if part.shortest_length < least or part.longest_length > most:
            keyword = "minLength" if part.shortest_length < least else "maxLength"
            raise UnsupportedSchema(f"{keyword}: not supported beside a pattern that also matches texts of other lengths")
    if beside and ("pattern" in beside or max(least, 0 if most == math.inf else most) <= MAX_REPETITIONS):
        for keyword in beside:
            del node[keyword]
        node["pattern"] = _whole(part)
    return json.dumps(part.shortest(MAX_TEXT)) if part.shortest_length <= MAX_TEXT else TOO_LONG


def _pattern(pattern: Any, keyword: str) -> Part:
    if not isinstance(pattern, str):
        raise UnsupportedSchema(f"{keyword}: takes a text")
    try:
        return parse(pattern)
    except ValueError as error:
        raise UnsupportedSchema(f"{keyword}: {error}") from None


def _whole(part: Part) -> str:
    return f"^{part.in_json()}$"


def _number(node: Mapping[str, Any], *, whole: bool) -> str:
    """Return the allowed number nearest to 0."""
    bounds: dict[str, float] = {}
    for keyword in OF_NUMBERS & node.keys():
        value = node[keyword]
        if not _is_number(value) or abs(value) > MAX_NUMBER or round(value, 0 if whole else FRACTION_DIGITS) != value:
            kind = "whole number" if whole else f"number of at most {FRACTION_DIGITS} digits after the point"
            raise UnsupportedSchema(f"{keyword}: takes a {kind} up to 2^53, not {json.dumps(value)[:40]}")
        bounds[keyword] = int(value) if whole else value
    low, high = bounds.get("minimum", -math.inf), bounds.get("maximum", math.inf)
    above, below = bounds.get("exclusiveMinimum", -math.inf), bounds.get("exclusiveMaximum", math.inf)
    if whole:
        low, high = max(low, above + 1), min(high, below - 1)
        above, below = -math.inf, math.inf
    middle = (max(low, above) + min(high, below)) / 2
    candidates = [0, low, high, math.floor(max(low, above)) + 1 if max(low, above) > -math.inf else 0]
    candidates += [math.ceil(min(high, below)) - 1 if min(high, below) < math.inf else 0, middle]
    for one in candidates:
        if math.isfinite(one) and low <= one <= high and above < one < below:
            return json.dumps(one)
    keyword = next(name for name in ("minimum", "exclusiveMinimum") if name in node)
    raise UnsupportedSchema(f"{keyword}: no number is between it and the maximum")
