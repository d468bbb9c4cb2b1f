"""What an answer must look like, token by token: JSON, a regular expression, one of some texts, or a grammar.

The bounds are there because whoever writes a schema writes a program for a compiler that all requests share; what they do not catch is
the engine's to try out before it is let in.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import attrs

from llmserve.errors import InvalidRequest

# OpenAI's own bounds of a schema are 10 levels, 5,000 properties and 120,000 characters of names (its documentation, 2026); these leave
# room for nested $defs. Deeper than 64, xgrammar 0.2 and vLLM 0.32 refuse.
MAX_CHARACTERS = 65_536
MAX_DEPTH = 32
MAX_CHOICES = 1024

# The last one is vLLM's own, for calls of tools in a model's own way of writing them.
Kind = Literal["json", "json_object", "regex", "choice", "grammar", "structural_tag"]
FIELD = "structured_outputs"


@attrs.frozen
class StructuredOutputs:
    """One constraint, made by the method of its kind; `spec` is its text, for `json` the schema and for `choice` a list as JSON.

    Raises:
        InvalidRequest: it is empty, too long, too deep, or no such thing.
    """

    kind: Kind
    spec: str = attrs.field(repr=False)

    @spec.validator
    def _is_bounded(self, _: object, value: str) -> None:
        if len(value) > MAX_CHARACTERS:
            raise InvalidRequest(f"{FIELD}: {self.kind} has {len(value):,} characters, and may have {MAX_CHARACTERS:,}", FIELD)
        check_text(value, FIELD)

    @classmethod
    def json(cls, schema: str | Mapping[str, Any]) -> Self:
        """JSON that keeps to a JSON Schema, as a text or a dictionary. `{}` is any JSON."""
        if isinstance(schema, str):
            # Before it is read: what is longer is not worth the time.
            cls._is_bounded(cls("json", ""), None, schema)
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{FIELD}: the schema is no JSON: {error}", FIELD) from None
        if not isinstance(schema, Mapping):
            raise InvalidRequest(f"{FIELD}: a schema is a JSON object", FIELD)
        check_schema(schema)
        return cls("json", as_json(schema))

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls("json_object", "")

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """A whole text that matches, with no look-around and no back-references."""
        if "\0" in pattern:
            raise InvalidRequest(f"{FIELD}: a regex has no NUL", FIELD)
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Self:
        """One of these."""
        if not 1 <= len(texts) <= MAX_CHOICES or not all(isinstance(text, str) and text for text in texts):
            raise InvalidRequest(f"{FIELD}: choice takes 1 to {MAX_CHOICES} texts, none empty", FIELD)
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))

    @classmethod
    def grammar(cls, text: str) -> Self:
        """A context-free grammar in EBNF, whose first rule is `root`."""
        if not text.strip():
            raise InvalidRequest(f"{FIELD}: grammar is empty", FIELD)
        return cls("grammar", text)

    @property
    def choices(self) -> list[str]:
        """Of a `choice`."""
        texts: list[str] = json.loads(self.spec)
        return texts


def as_json(value: Any, field: str = FIELD) -> str:
    """Raises InvalidRequest about `field` for a value that JSON does not have: bytes, timestamps, NaN, keys that are not text."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field}: the schema holds a value that JSON does not have: {str(error)[:100]}", field) from None
    check_text(text, field)
    return text


def check_text(text: str, field: str) -> None:
    """Raises InvalidRequest about `field` for a text with a lone surrogate, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        raise InvalidRequest(f"{field}: the lone surrogate U+{surrogate:X} is not a character", field) from None


def check_schema(schema: Mapping[str, Any], field: str = FIELD) -> None:
    """Not by recursion, which is what a deep one is made to exhaust. Raises InvalidRequest about `field`."""
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        for node in level:
            if isinstance(node, Mapping) and not all(isinstance(key, str) for key in node):
                raise InvalidRequest(f"{field}: the schema has a key that is not text", field)
            reference = node.get("$ref") if isinstance(node, Mapping) else None
            if isinstance(reference, str) and not reference.startswith("#"):
                # xgrammar would take anything in its place.
                raise InvalidRequest(f"{field}: the schema refers to {reference[:64]!r}, and can refer to its own parts only", field)
        level = [child for node in level for child in _children(node) if isinstance(child, (Mapping, list))]
        if not level:
            return
    raise InvalidRequest(f"{field}: the schema is nested deeper than {MAX_DEPTH} levels", field)


def _children(node: Any) -> Sequence[Any]:
    return list(node.values()) if isinstance(node, Mapping) else node
