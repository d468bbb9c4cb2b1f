"""Answers of the simulated engine with a form: the smallest one of a schema, or a tool call."""

import json
import uuid
from collections.abc import Sequence

from llmserve.errors import InvalidRequest
from llmserve.json_schema.narrowing import hold
from llmserve.json_schema.patterns import parse
from llmserve.json_schema.values import MAX_TEXT
from llmserve.request import GenerationRequest
from llmserve.structured import FIELD, StructuredOutputs
from llmserve.tools import Message, ToolCall, held_functions

BEGIN, NAME_END, END = '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"


def answer(request: GenerationRequest) -> StructuredOutputs | None:
    """Return the answer's text as a choice of one, or None if any text is allowed.

    Raises InvalidRequest for a form that this engine does not support.
    """
    if calls(request):
        text = _call(request)
    elif (constraint := request.sampling.structured_outputs) is not None:
        text = _smallest(constraint)
    else:
        return None
    return StructuredOutputs("choice", json.dumps([text]))


def calls(request: GenerationRequest) -> bool:
    """Whether the answer is a call: with "auto", unless the last message is a tool's result."""
    tools, messages = request.tools, request.messages or ({},)
    if tools is None or tools.choice == "none":
        return False
    return tools.choice != "auto" or messages[-1].get("role") != "tool"


def _smallest(constraint: StructuredOutputs) -> str:
    text: str | None
    match constraint.kind:
        case "json":
            text = _shortest(constraint.spec, FIELD)
        case "json_object":
            text = "{}"
        case "choice":
            text = constraint.choices[0]
        case "regex":
            try:
                part = parse(constraint.spec)
            except ValueError as error:
                raise InvalidRequest(f"{FIELD}: the regex: {error}", FIELD) from None
            text = part.shortest(MAX_TEXT) if part.shortest_length <= MAX_TEXT else None
        case kind:
            raise InvalidRequest(f"{FIELD}: the simulated engine does not support {kind}; use json, regex or choice", FIELD)
    if text is None:
        raise _too_long(FIELD)
    return text


def _call(request: GenerationRequest) -> str:
    tools = request.tools
    assert tools is not None
    function = next(one for one in held_functions(tools) if tools.name in (None, one["name"]))
    try:
        arguments = _shortest(json.dumps(function.get("parameters") or {"type": "object"}), "tools")
    except InvalidRequest:
        if function.get("strict", tools.choice != "auto"):
            raise
        # The answer does not have to conform to this schema.
        arguments = "{}"
    return f"{BEGIN}{function['name']}{NAME_END}{arguments}{END}"


def _shortest(schema: str, field: str) -> str:
    try:
        text = hold(json.loads(schema)).shortest()
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}", field) from None
    if text is None:
        raise _too_long(field)
    return text


def _too_long(field: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: the smallest answer has more than the simulated engine's {MAX_TEXT:,} characters", field)


class ToolCallParser:
    """Parses an answer that is one tool call, in pieces of any size.

    A truncated call keeps the arguments that came before the cut.
    """

    def __init__(self) -> None:
        self._text = ""
        self._id: str | None = f"call_{uuid.uuid4().hex}"
        self._sent = 0

    def read(self, text: str, token_ids: Sequence[int], *, last: bool) -> Message:
        self._text += text
        begin, named, arguments = self._text.partition(NAME_END)
        if not named:
            return Message()
        found = self._arguments(arguments, last=last)
        new, self._sent = found[self._sent :], len(found)
        if self._id is not None:
            call, self._id = ToolCall(0, self._id, begin.removeprefix(BEGIN), new), None
            return Message(tool_calls=(call,))
        return Message(tool_calls=(ToolCall(0, None, None, new),)) if new else Message()

    def _arguments(self, text: str, *, last: bool) -> str:
        """Return the part of the text that certainly belongs to the arguments."""
        kept = next((size for size in range(len(END), 0, -1) if text.endswith(END[:size])), 0)
        if kept == 1 and last and text.count("{") >= text.count("}"):
            # The call was cut inside its arguments, so this brace belongs to them.
            return text
        return text[: len(text) - kept]
