"""Functions that a model may call, and what an answer is made of when it is more than text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs

from llmserve.errors import InvalidRequest
from llmserve.json_schema.narrowing import hold
from llmserve.structured import MAX_CHARACTERS, as_json, check_schema
from llmserve.validation.results import Result

# OpenAI's bounds of a request (its API reference, 2026).
MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Choice = Literal["none", "auto", "required", "named"]


def _functions(value: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class Tools:
    """What may be called, and whether it must be.

    Attributes:
        functions: each a dictionary of `name`, and where there is any of `description`, `parameters` (a JSON Schema) and `strict`.
        choice: "auto" leaves it to the model, "none" is no call, "required" one or more, "named" the one of `name`.
        parallel: whether there may be several calls in one answer.

    Raises:
        InvalidRequest: a name, a schema, or how much of it there is; `param` is `tools` or `tool_choice`.
    """

    functions: tuple[Mapping[str, Any], ...] = attrs.field(converter=_functions)
    choice: Choice = "auto"
    name: str | None = None
    parallel: bool = True

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.functions) <= MAX_TOOLS:
            raise InvalidRequest(f"tools must be 1 to {MAX_TOOLS} functions", "tools")
        names = [function.get("name") for function in self.functions]
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
            raise InvalidRequest("tools: each function has a name of its own, of 1 to 64 letters, digits, dashes and underscores", "tools")
        for function in self.functions:
            check_schema(function.get("parameters") or {}, "tools")
        if len(as_json(self.functions, "tools")) > MAX_CHARACTERS:
            raise InvalidRequest(f"tools have more than {MAX_CHARACTERS:,} characters together", "tools")
        if (self.choice == "named") != (self.name is not None) or (self.name is not None and self.name not in names):
            raise InvalidRequest("tool_choice names none of the tools", "tool_choice")


class ToolCall(Result, frozen=True):
    """A call, or what is new of the call `index` in a stream: its `id` and `name` come once, pieces of the JSON `arguments` in turn."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Message(Result, frozen=True):
    """An answer taken apart, or what is new of it."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class OutputParser(Protocol):
    """Takes one answer apart, piece by piece as the engine makes them. A whole answer is read in the same way as a stream, so that both
    say the same, also of an answer that was cut."""

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Message:
        """What these tokens add to it. Raises EngineError."""


def join(messages: Sequence[Message]) -> Message:
    """Consecutive pieces as one: text is joined, and so are the arguments of each call."""
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
    """The functions, each with the parameters that xgrammar is given where an answer is held to them: where a call is forced or the
    function is strict, unless its `strict` is false. Raises InvalidRequest about `tools`."""
    return [_held(function, enforced=bool(function.get("strict", tools.choice != "auto"))) for function in tools.functions]


def _held(function: Mapping[str, Any], *, enforced: bool) -> Mapping[str, Any]:
    if not enforced or not function.get("parameters"):
        return function
    try:
        # The schema is changed, and this one is the caller's.
        return {**function, "parameters": hold(json.loads(json.dumps(function["parameters"]))).narrowed}
    except ValueError as error:
        raise InvalidRequest(f"tools: the parameters of {function['name']!r}: {error}", "tools") from None
