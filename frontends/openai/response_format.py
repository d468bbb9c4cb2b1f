"""What an answer must look like, as the wires say it: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from typing import Any

import msgspec

from llmserve import InvalidRequest, StructuredOutputs

# vLLM's further fields, which clients that send all fields send with null or false.
_UNSUPPORTED = ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties")


class StructuredOutputsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Exactly one of the first five."""

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
            words = "structured_outputs takes exactly one of json, json_object, regex, choice and grammar"
            raise InvalidRequest(words, "structured_outputs")
        ((kind, value),) = given.items()
        return StructuredOutputs.json_object() if kind == "json_object" else getattr(StructuredOutputs, kind)(value)


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """As it comes. Clients with one type for all formats send the schema's field too, as null."""

    json_schema: None = None

    def constraint(self) -> StructuredOutputs | None:
        return None


class ObjectFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""

    json_schema: None = None

    def constraint(self) -> StructuredOutputs | None:
        return StructuredOutputs.json_object()


class JSONSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`name` and `description` are for models that are told of the schema. It is kept to whatever `strict` says."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that keeps to a schema."""

    json_schema: JSONSchema

    def constraint(self) -> StructuredOutputs | None:
        return StructuredOutputs.json(self.json_schema.schema)


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat


def constraint_of(response_format: ResponseFormat | None, structured_outputs: StructuredOutputsBody | None) -> StructuredOutputs | None:
    """Raises InvalidRequest, naming the field that is wrong."""
    if response_format is None or isinstance(response_format, TextFormat):
        return None if structured_outputs is None else structured_outputs.constraint()
    if structured_outputs is not None:
        raise InvalidRequest("give one of response_format and structured_outputs", "structured_outputs")
    return response_format.constraint()


def body_of(constraint: StructuredOutputs) -> dict[str, Any]:
    """A constraint as `structured_outputs` has it on the wire."""
    match constraint.kind:
        case "json_object":
            return {"json_object": True}
        case "choice":
            return {"choice": constraint.choices}
        case kind:
            return {kind: constraint.spec}
