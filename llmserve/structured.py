"""Constraints on an answer: JSON, a regular expression, a choice of texts, or a grammar.

A schema is a program for a compiler that all requests share, so its size is bounded here. The
engine tests what these bounds let through before it accepts the request.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import attrs

from llmserve.errors import InvalidRequest

# OpenAI allows 10 levels, 5,000 properties and 120,000 characters of names (its documentation,
# 2026). These bounds leave room for nested $defs. xgrammar 0.2 and vLLM 0.32 refuse schemas deeper
# than 64.
MAX_CHARACTERS = 65_536
MAX_DEPTH = 32
MAX_CHOICES = 1024

# "structural_tag" is vLLM's own kind, for tool calls in a model's native format.
Kind = Literal["json", "json_object", "regex", "choice", "grammar", "structural_tag"]
FIELD = "structured_outputs"


@attrs.frozen
class StructuredOutputs:
    """One constraint; make it with the method of its kind.

    `spec` is its text: the schema as JSON for `json`, a list as JSON for `choice`.

    Raises:
        InvalidRequest: The constraint is empty, too long, too deep or malformed.
    """

    kind: Kind
    spec: str = attrs.field(repr=False)

    @spec.validator
    def _is_bounded(self, _: object, value: str) -> None:
        if len(value) > MAX_CHARACTERS:
            raise InvalidRequest(f"{FIELD}: {self.kind} has {len(value):,} characters; at most {MAX_CHARACTERS:,} are allowed", FIELD)
        check_text(value, FIELD)

    @classmethod
    def json(cls, schema: str | Mapping[str, Any]) -> Self:
        """JSON that conforms to a JSON Schema, as text or a dictionary. `{}` allows any JSON."""
        if isinstance(schema, str):
            # Check the length first: parsing a longer text would waste time.
            cls._is_bounded(cls("json", ""), None, schema)
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{FIELD}: the schema is not valid JSON: {error}", FIELD) from None
        if not isinstance(schema, Mapping):
            raise InvalidRequest(f"{FIELD}: a schema must be a JSON object", FIELD)
        check_schema(schema)
        return cls("json", as_json(schema))

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls("json_object", "")

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that matches the whole pattern, without look-around and back-references."""
        if "\0" in pattern:
            raise InvalidRequest(f"{FIELD}: a regex must not contain NUL", FIELD)
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Self:
        """One of these texts."""
        if not 1 <= len(texts) <= MAX_CHOICES or not all(isinstance(text, str) and text for text in texts):
            raise InvalidRequest(f"{FIELD}: choice takes 1 to {MAX_CHOICES} texts, none empty", FIELD)
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))

    @classmethod
    def grammar(cls, text: str) -> Self:
        """Text of a context-free grammar in EBNF whose first rule is `root`."""
        if not text.strip():
            raise InvalidRequest(f"{FIELD}: grammar is empty", FIELD)
        return cls("grammar", text)

    @property
    def choices(self) -> list[str]:
        """The texts of a `choice` constraint."""
        texts: list[str] = json.loads(self.spec)
        return texts


def as_json(value: Any, field: str = FIELD) -> str:
    """Return `value` as JSON text. Raises InvalidRequest about `field`.

    JSON has no bytes, timestamps, NaN or keys that are not text.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field}: the schema contains a value that JSON cannot represent: {str(error)[:100]}", field) from None
    check_text(text, field)
    return text


def check_text(text: str, field: str) -> None:
    """Raise InvalidRequest about `field` if the text has a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        raise InvalidRequest(f"{field}: the lone surrogate U+{surrogate:X} is not a character", field) from None


def check_schema(schema: Mapping[str, Any], field: str = FIELD) -> None:
    """Check the keys, references and depth of a schema. Raises InvalidRequest about `field`.

    The check does not recurse, so a deep schema cannot exhaust the stack.
    """
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        for node in level:
            if isinstance(node, Mapping) and not all(isinstance(key, str) for key in node):
                raise InvalidRequest(f"{field}: the schema has a key that is not text", field)
            reference = node.get("$ref") if isinstance(node, Mapping) else None
            if isinstance(reference, str) and not reference.startswith("#"):
                # xgrammar would accept any value in place of such a reference.
                raise InvalidRequest(
                    f"{field}: the schema refers to {reference[:64]!r}; only references to its own parts are supported", field
                )
        level = [child for node in level for child in _children(node) if isinstance(child, (Mapping, list))]
        if not level:
            return
    raise InvalidRequest(f"{field}: the schema is nested deeper than {MAX_DEPTH} levels", field)


def _children(node: Any) -> Sequence[Any]:
    return list(node.values()) if isinstance(node, Mapping) else node
