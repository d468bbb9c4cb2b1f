"""Converts a constraint to a form that xgrammar enforces."""

import json
from functools import lru_cache

from llmserve.errors import InvalidRequest
from llmserve.json_schema.narrowing import hold
from llmserve.json_schema.patterns import parse
from llmserve.structured import FIELD, StructuredOutputs

# Converted schemas of at most this many characters are cached, and this many of them: some
# megabytes.
REMEMBERED_CHARACTERS = 8192
REMEMBERED = 256


def held(constraint: StructuredOutputs) -> StructuredOutputs:
    """Return the enforceable form. Takes linear time, up to 0.1 s.

    Raises InvalidRequest, which names the part that cannot be enforced.
    """
    return (_held if len(constraint.spec) > REMEMBERED_CHARACTERS else _remembered)(constraint)


def _held(constraint: StructuredOutputs) -> StructuredOutputs:
    try:
        if constraint.kind == "regex":
            parse(constraint.spec)
        if constraint.kind == "json":
            narrowed = hold(json.loads(constraint.spec)).narrowed
            return StructuredOutputs("json", json.dumps(narrowed, ensure_ascii=False))
    except ValueError as error:
        raise InvalidRequest(f"{FIELD}: {'the regex: ' if constraint.kind == 'regex' else ''}{error}", FIELD) from None
    return constraint


_remembered = lru_cache(REMEMBERED)(_held)
