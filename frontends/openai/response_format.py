"""Structured outputs on the wire: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from typing import Any

import msgspec

from llmserve import InvalidRequest, StructuredOutputs

# vLLM's other fields. Clients that send all fields send these as null or false.
_UNSUPPORTED = ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties")


class StructuredOutputsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`, with exactly one of the first five fields."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: str | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None

    def constraint(self) -> StructuredOutputs:
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None and value is not False}
        for name in _UNSUPPORTED:
            if name in given:
                raise InvalidRequest(f"structured_outputs: {name} is not supported", "structured_outputs")
        if len(given) != 1:
            words = "structured_outputs must have exactly one of json, json_object, regex, choice and grammar"
            raise InvalidRequest(words, "structured_outputs")
        ((kind, value),) = given.items()
        return StructuredOutputs.json_object() if kind == "json_object" else getattr(StructuredOutputs, kind)(value)


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Unconstrained text.

    Clients with one type for all formats also send `json_schema` as null.
    """

    json_schema: None = None

    def constraint(self) -> StructuredOutputs | None:
        return None


class ObjectFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""

    json_schema: None = None

    def constraint(self) -> StructuredOutputs | None:
        return StructuredOutputs.json_object()


class JSONSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A schema, which is enforced regardless of `strict`.

    `name` and `description` are for models that see the schema in their prompt.
    """

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that conforms to a schema."""

    json_schema: JSONSchema

    def constraint(self) -> StructuredOutputs | None:
        return StructuredOutputs.json(self.json_schema.schema)


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat


def constraint_of(response_format: ResponseFormat | None, structured_outputs: StructuredOutputsBody | None) -> StructuredOutputs | None:
    """Return the constraint of a request. Raises InvalidRequest, which names the invalid field."""
    if response_format is None or isinstance(response_format, TextFormat):
        return None if structured_outputs is None else structured_outputs.constraint()
    if structured_outputs is not None:
        raise InvalidRequest("response_format and structured_outputs exclude each other", "structured_outputs")
    return response_format.constraint()


def body_of(constraint: StructuredOutputs) -> dict[str, Any]:
    """Return a constraint in the format of `structured_outputs`."""
    match constraint.kind:
        case "json_object":
            return {"json_object": True}
        case "choice":
            return {"choice": constraint.choices}
        case kind:
            return {kind: constraint.spec}
