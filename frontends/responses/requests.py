"""The body of /v1/responses, and the chat that it becomes."""

from typing import Any, ClassVar, Literal

import msgspec

from frontends.access.caller import Caller
from frontends.openai.chat import ChatRequest
from frontends.openai.messages import ChatMessage
from frontends.openai.response_format import JSONSchema, ObjectFormat, ResponseFormat, SchemaFormat
from frontends.openai.sizes import Undecoded
from frontends.openai.tools import FunctionBody, NamedChoice, NamedFunction, ToolBody, ToolChoice
from frontends.openai.unsupported import RESPONSES, Unsupported
from frontends.openai.wanted import ParsedBody, renamed
from frontends.responses.items import Item, chat_messages
from llmserve import InvalidRequest

# The client's field names by those of a chat.
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text",
    "structured_outputs": "text",
    "template_kwargs": "chat_template_kwargs",
}
# Fields with the same meaning in a chat: OpenAI's, and vLLM's extras.
SAME = (
    "model", "stream", "temperature", "top_p", "parallel_tool_calls", "user", "service_tier", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "seed", "stop", "stop_token_ids", "min_tokens", "ignore_eos", "logit_bias", "priority",
    "chat_template_kwargs",
)  # fmt: skip


class ResponseTool(msgspec.Struct, kw_only=True):
    """A tool. Only functions count.

    Agents always declare tools of other types too, which OpenAI's server runs or parses. The model
    does not learn of them, so it cannot call them.
    """

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def chat(self) -> ToolBody:
        if self.name is None:
            raise InvalidRequest("tools: a function requires name", "tools")
        function = FunctionBody(name=self.name, description=self.description, parameters=self.parameters, strict=self.strict)
        return ToolBody(type="function", function=function)


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None

    def chat(self) -> ResponseFormat | None:
        if self.type == "json_schema":
            if self.schema is None:
                raise InvalidRequest("text: the format json_schema requires schema", "text")
            return SchemaFormat(JSONSchema(name=self.name or "output", schema=self.schema))
        return ObjectFormat() if self.type == "json_object" else None


class TextConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The answer's format. `verbosity` is for OpenAI's models, and ignored."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """How much the model reasons. `summary` is ignored: the answer has the reasoning itself."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses. The server keeps no responses, so each has its whole input."""

    unsupported: ClassVar[Unsupported] = RESPONSES

    input: str | list[Item]
    instructions: str | None = None
    model: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    # Encrypted reasoning and the like: what the answer could have in addition.
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    priority: int | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = None
    # Without effect, as in chats. `stream_options` has only padding here, and `client_metadata` is
    # a coding agent's own.
    store: Undecoded = msgspec.UNSET
    metadata: Undecoded = msgspec.UNSET
    safety_identifier: Undecoded = msgspec.UNSET
    prompt_cache_key: Undecoded = msgspec.UNSET
    prompt_cache_retention: Undecoded = msgspec.UNSET
    prompt_cache_options: Undecoded = msgspec.UNSET
    client_metadata: Undecoded = msgspec.UNSET
    stream_options: Undecoded = msgspec.UNSET

    def wanted(self, caller: Caller, adapter: str | None) -> ParsedBody:
        """Return the parsed content of this body. Raises InvalidRequest."""
        with renamed(**NAMES):
            found = self._chat().wanted(caller, adapter)
        found.names.update(NAMES)
        return found

    def _chat(self) -> ChatRequest:
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = chat_messages(items)
        if self.instructions:
            messages.insert(0, ChatMessage(role="system", content=self.instructions))
        text, choice = self.text or TextConfig(), self.tool_choice
        tools = [tool.chat() for tool in self.tools or () if tool.type == "function"] or None
        named: ToolChoice | None = NamedChoice("function", NamedFunction(choice.name)) if isinstance(choice, NamedTool) else choice
        return ChatRequest(
            messages=messages,
            max_tokens=self.max_output_tokens,
            tools=tools,
            # Clients send "auto" without tools too.
            tool_choice=named if tools or named != "auto" else None,
            response_format=None if text.format is None else text.format.chat(),
            reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
            **{name: getattr(self, name) for name in SAME},
        )
