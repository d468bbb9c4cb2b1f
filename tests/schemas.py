"""JSON Schemas from hypothesis: most of draft 2020-12, in usual and unusual combinations."""

from hypothesis import strategies as st

TYPES = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])
NAMES = st.sampled_from(["a", "b", 'c"', "d\\", "é", "type", "$ref", "", "\t"])
COUNTS = st.integers(0, 3)
BOUNDS = st.integers(-100, 100) | st.sampled_from([0.5, -1.25, 12.125, 0.001, 1e-7, 1e10, 2**53, -(2**60)])
_WRITTEN = r"""
a ^a a$ ^[a-c]{1,3}$ ^" ^\\$ ^.$ ^[^x]{0,2}$ \d{2}-\w ^\s\S$ ^\W\D ^[\x00-\x1f]$ ^a(?=b) (?<!a)b a^b \bx (a)\1 ^(a|b|)$ ^(?:ab)+c?$
^[^\W]$ ^\n[\t\"]$ (?i)a [ \p{L} ^(^a|b$)$ ^a|b$ ^[\]\-^\\]$ ^[é-ü]😀?$ a{,3} \Aa\Z ^$ ^[^a]*$ ^\u2028$ (?P<n>a) (?:) x*?y+?
"""
PATTERNS = st.sampled_from(["", *_WRITTEN.split()])
_NAMED = """
email date time date-time duration ipv4 ipv6 hostname uuid uri uri-reference uri-template json-pointer relative-json-pointer regex password
"""
FORMATS = st.sampled_from(_NAMED.split())
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**54)
    | st.floats(-10, 10)
    | st.text(max_size=3)
    | st.sampled_from(['"', "\\", "\n", "\x00"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
REFERENCES = st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/$defs/none", "#a", "#/$defs/a~1b"])
REMARKS = {"title": st.just("t"), "description": st.text(max_size=3), "default": VALUES, "x-more": VALUES, "deprecated": st.booleans()}


def _some(needed, optional):
    return st.fixed_dictionaries(needed, optional=optional)


def _kinds(inner):
    """Return schemas with parts from `inner`."""
    text = {"minLength": COUNTS, "maxLength": COUNTS, "pattern": PATTERNS, "format": FORMATS}
    number = {"minimum": BOUNDS, "maximum": BOUNDS, "exclusiveMinimum": BOUNDS, "exclusiveMaximum": BOUNDS}
    properties = st.dictionaries(NAMES, inner, max_size=3)
    objects = {
        "additionalProperties": st.booleans() | inner,
        "minProperties": COUNTS,
        "maxProperties": COUNTS,
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "propertyNames": _some({}, text | {"enum": st.lists(NAMES, min_size=1, max_size=2)}),
        "unevaluatedProperties": st.booleans(),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=1),
    }
    arrays = {
        "minItems": COUNTS,
        "maxItems": COUNTS,
        "prefixItems": st.lists(inner, max_size=2),
        "uniqueItems": st.booleans(),
        "contains": inner,
        "unevaluatedItems": st.booleans(),
    }

    def with_required(node):
        names = list(node.get("properties", {}))
        wanted = st.lists(st.sampled_from(names), unique=True) if names else st.just([])
        return st.builds(lambda required: node | {"required": required}, wanted | st.lists(NAMES, max_size=1))

    typed = [_some({"type": st.just("string")}, {name: text[name]}) for name in text]
    typed += [_some({"type": st.just("string")}, {"minLength": st.just(1), "maxLength": COUNTS})]
    typed += [_some({"type": st.sampled_from(["integer", "number"])}, {low: number[low], high: number[high]}) for low, high in _PAIRS]
    typed += [
        _some({"type": st.just("object"), "properties": properties}, {"additionalProperties": st.booleans()}).flatmap(with_required),
        _some({"type": st.just("object"), "properties": properties}, {name: objects[name] for name in ("minProperties", "maxProperties")}),
        _some({"type": st.just("object")}, {name: objects[name] for name in ("patternProperties", "additionalProperties")}),
        _some({"type": st.just("object")}, {name: objects[name] for name in ("propertyNames", "additionalProperties", "maxProperties")}),
        _some({"type": st.just("array"), "items": inner}, {name: arrays[name] for name in ("minItems", "maxItems")}),
        _some({"type": st.just("array")}, arrays | {"items": st.booleans() | inner}),
        st.fixed_dictionaries({"type": TYPES}),
    ]
    alternatives = st.lists(inner, min_size=1, max_size=3)
    told_apart = st.builds(
        lambda parts: {
            "oneOf": [
                {"type": "object", "properties": {"kind": {"const": f"k{number}"}, "x": part}, "required": ["kind"]}
                for number, part in enumerate(parts)
            ]
        },
        alternatives,
    )
    untyped = [
        st.fixed_dictionaries({"$ref": REFERENCES}),
        st.fixed_dictionaries({"const": VALUES}),
        _some({"enum": st.lists(VALUES, max_size=3)}, {"type": TYPES}),
        *(st.builds(lambda parts, head=head: {head: parts}, alternatives) for head in ("anyOf", "oneOf", "allOf")),
        told_apart,
        _some({}, {"not": inner, "if": inner, "then": inner, "type": TYPES, "multipleOf": BOUNDS}),
    ]
    anything = _some(
        {}, text | number | objects | arrays | {"type": TYPES | st.lists(TYPES, max_size=2), "items": inner, "enum": st.just([1])}
    )
    return st.one_of(*typed, *untyped, *typed, anything)


_PAIRS = [("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"), ("minimum", "exclusiveMaximum")]
NODES = st.recursive(st.booleans() | st.just({}) | _kinds(st.fixed_dictionaries({"type": TYPES})), _kinds, max_leaves=6)


def _root(node, definitions, remarks):
    node = node if isinstance(node, dict) else {"type": "object", "properties": {"a": node}}
    return {**node, "$defs": definitions, **remarks}


SCHEMAS = st.builds(_root, NODES, st.fixed_dictionaries({"a": NODES, "b": NODES}), st.fixed_dictionaries({}, optional=REMARKS))
