"""Types, constants, strings and numbers of a JSON Schema, in the form that xgrammar enforces.

Each function returns a smallest answer of its kind, or raises UnsupportedSchema.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmserve.json_schema.derivations import Alternative
from llmserve.json_schema.patterns import Part, any_text, parse

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
HEADS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
OF_OBJECTS = {
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties", "unevaluatedProperties"),
}
OF_ARRAYS = {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"}
OF_STRINGS = {"minLength", "maxLength", "pattern", "format"}
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


def types_of(node: Mapping[str, Any]) -> Sequence[str]:
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


def constants(node: Mapping[str, Any], head: str) -> Iterator[Alternative]:
    values = [node["const"]] if head == "const" else node["enum"]
    if not isinstance(values, list) or not values:
        raise UnsupportedSchema("enum: takes a non-empty list of values")
    types = types_of(node) if "type" in node else ()
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


def counts(node: Mapping[str, Any], lower: str, upper: str) -> tuple[int, float]:
    """Return the bounds. Raises UnsupportedSchema if they are invalid or exclude all numbers."""
    for keyword in (lower, upper):
        value = node.get(keyword, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise UnsupportedSchema(f"{keyword}: takes a whole number from 0 to 2^31, not {json.dumps(value)[:40]}")
    least, most = node.get(lower, 0), node.get(upper, math.inf)
    if least > most:
        raise UnsupportedSchema(f"{lower}: greater than {upper}")
    return least, most


def shortest_string(node: dict[str, Any]) -> str:
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
    least, most = counts(node, "minLength", "maxLength")
    part = any_text(least, None if most == math.inf else int(most))
    if "pattern" in node:
        part = parse_pattern(node["pattern"], "pattern")
        if part.shortest_length < least or part.longest_length > most:
            keyword = "minLength" if part.shortest_length < least else "maxLength"
            raise UnsupportedSchema(f"{keyword}: not supported beside a pattern that also matches texts of other lengths")
    if beside and ("pattern" in beside or max(least, 0 if most == math.inf else most) <= MAX_REPETITIONS):
        for keyword in beside:
            del node[keyword]
        node["pattern"] = whole_pattern(part)
    return json.dumps(part.shortest(MAX_TEXT)) if part.shortest_length <= MAX_TEXT else TOO_LONG


def parse_pattern(text: Any, keyword: str) -> Part:
    if not isinstance(text, str):
        raise UnsupportedSchema(f"{keyword}: takes a text")
    try:
        return parse(text)
    except ValueError as error:
        raise UnsupportedSchema(f"{keyword}: {error}") from None


def whole_pattern(part: Part) -> str:
    return f"^{part.in_json()}$"


def nearest_number(node: Mapping[str, Any], *, whole: bool) -> str:
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
