"""The bodies of /v1/messages and /v1/messages/count_tokens, and the chats that they become."""

from typing import Any, ClassVar, Literal

import msgspec

from frontends.access.caller import Caller
from frontends.anthropic.messages import Block, MessageBody, texts
from frontends.openai.chat import ChatRequest
from frontends.openai.messages import ChatMessage, image_names, images_after_tools
from frontends.openai.response_format import JSONSchema, SchemaFormat
from frontends.openai.sizes import Undecoded
from frontends.openai.tools import FunctionBody, NamedChoice, NamedFunction, ToolBody, ToolChoice
from frontends.openai.unsupported import MESSAGES, Unsupported
from frontends.openai.wanted import ParsedBody, renamed
from llmserve import InvalidRequest

BILLING = "x-anthropic-billing-header:"
# The client's field names by those of a chat.
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config",
    "structured_outputs": "output_config",
    "template_kwargs": "thinking",
    "chat_template_kwargs": "thinking",
}


class ClientTool(msgspec.Struct, kw_only=True):
    """A function of the client. Anthropic's own tools, which have another `type`, are refused."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None

    def chat(self) -> ToolBody:
        if self.type not in (None, "custom") or self.input_schema is None:
            words = f"tools: only functions of the client with input_schema are supported, not {self.name[:64]!r} of the type {self.type!r}"
            raise InvalidRequest(words[:300], "tools")
        function = FunctionBody(name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict)
        return ToolBody(type="function", function=function)


class ClientToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def chat(self) -> ToolChoice:
        if self.type == "tool":
            if self.name is None:
                raise InvalidRequest("tool_choice of the type tool requires name", "tool_choice")
            return NamedChoice("function", NamedFunction(self.name))
        return "required" if self.type == "any" else self.type


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model reasons. `budget_tokens` and `display` are ignored."""

    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(msgspec.Struct):
    user_id: str | None = None


class CountRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages/count_tokens."""

    unsupported: ClassVar[Unsupported] = MESSAGES

    messages: list[MessageBody]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: ClientToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    # Hints for Anthropic's cache and its editing of conversations. Here the engine caches every
    # prompt, and nothing edits one.
    cache_control: Undecoded = msgspec.UNSET
    context_management: Undecoded = msgspec.UNSET

    def wanted(self, caller: Caller, adapter: str | None) -> ParsedBody:
        """Return the parsed content of this body. Raises InvalidRequest."""
        chat = self._chat()
        names = NAMES | image_names(chat.messages)
        with renamed(**names):
            found = chat.wanted(caller, adapter)
        found.names.update(names)
        return found

    def _chat(self, **more: Any) -> ChatRequest:
        """Return the chat that this body asks for. Raises InvalidRequest."""
        messages = images_after_tools(message for number, body in enumerate(self.messages) for message in body.chat(number))
        if system := _without_billing(self.system or ""):
            messages.insert(0, ChatMessage(role="system", content=texts(system, "system")))
        choice, output = self.tool_choice, self.output_config or OutputConfig()
        schema = None if output.format is None else SchemaFormat(JSONSchema(name="output", schema=output.format.schema))
        return ChatRequest(
            messages=messages,
            model=self.model,
            tools=[tool.chat() for tool in self.tools] if self.tools else None,
            tool_choice=None if choice is None else choice.chat(),
            parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
            # The argument of templates with a single switch for reasoning.
            chat_template_kwargs=None if self.thinking is None else {"enable_thinking": self.thinking.type != "disabled"},
            reasoning_effort=output.effort,
            response_format=schema,
            **more,
        )


def _without_billing(system: str | list[Block]) -> str | list[Block]:
    """Return the system prompt without the header that coding agents send as a block of it.

    It is not for the model. It differs in each request, so no prompt would be in the cache.
    """
    return system if isinstance(system, str) else [block for block in system if not (block.text or "").startswith(BILLING)]


class MessagesRequest(CountRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    # Anthropic's tiers mean the normal service.
    service_tier: Literal["auto", "standard_only"] | None = None

    def _chat(self, **more: Any) -> ChatRequest:
        return super()._chat(
            max_tokens=self.max_tokens,
            stream=self.stream,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
            user=None if self.metadata is None else self.metadata.user_id,
            **more,
        )
