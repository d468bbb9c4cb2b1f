"""Tools in OpenAI's format: functions and tool calls."""

from typing import Any, Literal

import msgspec

from frontends.openai.sizes import Undecoded
from llmserve import InvalidRequest, Tools


class FunctionBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function; `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Undecoded = msgspec.UNSET

    def plain(self) -> dict[str, Any]:
        known = {"name": self.name, "description": self.description, "parameters": self.parameters, "strict": self.strict}
        return {name: value for name, value in known.items() if value is not None}


class ToolBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool.

    `cache_control`, here and in the function, is for Anthropic's models; gateways send it to all
    models.
    """

    type: Literal["function"]
    function: FunctionBody
    cache_control: Undecoded = msgspec.UNSET


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


class CalledFunction(msgspec.Struct, omit_defaults=True):
    """A called function. `arguments` is JSON, or a piece of it in a stream.

    Clients expect the field even where it is empty.
    """

    name: str | None = None
    # A factory, because `omit_defaults` would omit a plain "".
    arguments: str = msgspec.field(default_factory=str)


class CallBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A tool call. In a stream it is the new part of the call number `index`."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


def tools_of(tools: list[ToolBody] | None, choice: ToolChoice | None, parallel: bool | None) -> Tools | None:  # noqa: FBT001 - the field's own
    """Return the tools of a request. Raises InvalidRequest."""
    if tools is None:
        if choice not in (None, "none"):
            raise InvalidRequest("tool_choice requires tools", "tool_choice")
        return None
    named = choice.function.name if isinstance(choice, NamedChoice) else None
    return Tools(
        functions=[tool.function.plain() for tool in tools],
        choice="named" if isinstance(choice, NamedChoice) else choice or "auto",
        name=named,
        parallel=parallel is not False,
    )
