"""Functions that a model may call, and the parts of an answer that is more than text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs

from llmserve.errors import InvalidRequest
from llmserve.json_schema.narrowing import hold
from llmserve.structured import MAX_CHARACTERS, as_json, check_schema
from llmserve.validation.results import Result

# OpenAI's bound for a request (its API reference, 2026).
MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Choice = Literal["none", "auto", "required", "named"]


def _functions(value: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class Tools:
    """The functions that a model may call, and whether it must call one.

    Attributes:
        functions: Each is a dictionary with `name` and optionally `description`, `parameters` (a
            JSON Schema) and `strict`.
        choice: "auto" lets the model decide, "none" forbids calls, "required" forces at least one,
            "named" forces a call of `name`.
        name: The function to call if `choice` is "named".
        parallel: Whether one answer may have several calls.

    Raises:
        InvalidRequest: A name or schema is invalid, or there is too much of either; `param` is
            `tools` or `tool_choice`.
    """

    functions: tuple[Mapping[str, Any], ...] = attrs.field(converter=_functions)
    choice: Choice = "auto"
    name: str | None = None
    parallel: bool = True

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.functions) <= MAX_TOOLS:
            raise InvalidRequest(f"tools must have 1 to {MAX_TOOLS} functions", "tools")
        names = [function.get("name") for function in self.functions]
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
            raise InvalidRequest("tools: each function needs a unique name of 1 to 64 letters, digits, dashes and underscores", "tools")
        for function in self.functions:
            check_schema(function.get("parameters") or {}, "tools")
        if len(as_json(self.functions, "tools")) > MAX_CHARACTERS:
            raise InvalidRequest(f"tools have more than {MAX_CHARACTERS:,} characters in total", "tools")
        if (self.choice == "named") != (self.name is not None) or (self.name is not None and self.name not in names):
            raise InvalidRequest("tool_choice does not name one of the tools", "tool_choice")


class ToolCall(Result, frozen=True):
    """A tool call, or the new part of the call `index` in a stream.

    In a stream, `id` and `name` come once, and the JSON `arguments` come in pieces.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


class Message(Result, frozen=True):
    """A parsed answer, or the new part of one."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class OutputParser(Protocol):
    """Parses one answer, piece by piece as the engine generates it.

    A whole answer is parsed like a stream, so both give the same result, even for a truncated
    answer.
    """

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Message:
        """Return what these tokens add to the answer. Raises EngineError."""


def join(messages: Sequence[Message]) -> Message:
    """Join consecutive pieces: their texts, and the arguments of each call."""
    if len(messages) == 1:
        return messages[0]
    names: dict[int, tuple[str | None, str | None]] = {}
    arguments: dict[int, list[str]] = {}
    for call in (call for message in messages for call in message.tool_calls):
        known_id, known_name = names.get(call.index, (None, None))
        names[call.index] = known_id or call.id, known_name or call.name
        arguments.setdefault(call.index, []).append(call.arguments)
    calls = tuple(ToolCall(index, *names[index], "".join(pieces)) for index, pieces in sorted(arguments.items()))
    return Message("".join(one.content for one in messages), "".join(one.reasoning for one in messages), calls)


def held_functions(tools: Tools) -> list[Mapping[str, Any]]:
    """Return the functions with parameters that xgrammar can enforce. Raises InvalidRequest.

    Parameters are enforced if a call is forced or the function is strict, unless `strict` is false.
    """
    return [_held(function, enforced=bool(function.get("strict", tools.choice != "auto"))) for function in tools.functions]


def _held(function: Mapping[str, Any], *, enforced: bool) -> Mapping[str, Any]:
    if not enforced or not function.get("parameters"):
        return function
    try:
        # hold() changes the schema, so it gets a copy of the caller's.
        return {**function, "parameters": hold(json.loads(json.dumps(function["parameters"]))).narrowed}
    except ValueError as error:
        raise InvalidRequest(f"tools: the parameters of {function['name']!r}: {error}", "tools") from None
