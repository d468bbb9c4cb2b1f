"""The body of /v1/responses, and the chat that it becomes."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import attrs
import msgspec

from frontends.access.caller import Caller
from frontends.net.receive_budget import LARGEST
from frontends.openai.chat import ChatRequest
from frontends.openai.messages import ChatMessage, image_names, images_after_tools
from frontends.openai.response_format import JSONSchema, ObjectFormat, ResponseFormat, SchemaFormat
from frontends.openai.sizes import Undecoded, check_metadata
from frontends.openai.tools import FunctionBody, NamedChoice, NamedFunction, ToolBody, ToolChoice
from frontends.openai.unsupported import NOTHING_STORED, RESPONSES, Unsupported
from frontends.openai.wanted import ParsedBody, renamed
from frontends.responses.items import Item, chat_messages, listed
from frontends.responses.stored import PREFIX, Name, Record, ResponseStore, joined
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


@attrs.frozen(kw_only=True)
class ParsedResponse(ParsedBody):
    """The parsed content of a body.

    Attributes:
        previous: the id of the response that this one continues.
        metadata: what the client notes about the response.
        background: whether the client does not wait for the answer.
        record: the place where the response is kept; None if it is not.
    """

    previous: str | None
    metadata: dict[str, str]
    background: bool
    record: Record | None


# The conversation before a request, as JSON.
EMPTY = b"[]"
_ITEMS = msgspec.json.Decoder(list[Item])
# Maximum bytes of the items of a response that is kept: as much as one body. A small request can
# continue it, and each item costs time then, so their number has a maximum too.
MAX_BYTES = LARGEST
MAX_ITEMS = 4096
# What `include` names for the logprobs of an answer, and the maximum number of those, alternatives
# included. They take 3 MB in each of a stream's last events.
LOGPROBS = "message.output_text.logprobs"
MAX_LOGPROB_ENTRIES = 2**15


class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses."""

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
    # What the answer has in addition. It has no encrypted reasoning.
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
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
    safety_identifier: Undecoded = msgspec.UNSET
    prompt_cache_key: Undecoded = msgspec.UNSET
    prompt_cache_retention: Undecoded = msgspec.UNSET
    prompt_cache_options: Undecoded = msgspec.UNSET
    client_metadata: Undecoded = msgspec.UNSET
    stream_options: Undecoded = msgspec.UNSET

    def wanted(self, caller: Caller, adapter: str | None, before: bytes = EMPTY, store: ResponseStore | None = None) -> ParsedResponse:
        """Return the parsed content of this body. Raises InvalidRequest.

        Args:
            caller: the caller.
            adapter: the adapter that the model names.
            before: the conversation that the input continues.
            store: where the response is kept, if the client does not object; None keeps none.
        """
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise InvalidRequest(f"top_logprobs requires include to have {LOGPROBS}", "top_logprobs")
        own = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        earlier = _ITEMS.decode(before)
        every = [*earlier, *own]
        chat = self._chat(every, -len(earlier))
        names = NAMES | image_names(chat.messages)
        with renamed(**names):
            found = chat.wanted(caller, adapter)
        found.names.update(names)
        request_id, record = found.requests[0].request_id, None
        if store is not None and self.store is not False and len(every) <= MAX_ITEMS:
            items = joined(before, listed(own, request_id))
            if len(items) <= MAX_BYTES:
                record = Record(store, Name(caller.tenant, f"{PREFIX}-{request_id}"), items, background=bool(self.background))
        if self.background:
            self._check_background(store, record)
        return ParsedResponse(
            **attrs.asdict(found, recurse=False),
            previous=self.previous_response_id,
            metadata=check_metadata(self.metadata),
            background=bool(self.background),
            record=record,
        )

    def _check_background(self, store: ResponseStore | None, record: Record | None) -> None:
        words = None
        if store is None:
            words = NOTHING_STORED
        elif self.store is False:
            words = "the client gets the answer from the store, so store must not be false"
        elif record is None:
            words = f"a response is kept only with at most {MAX_ITEMS:,} items of at most {MAX_BYTES:,} bytes"
        if words is not None:
            raise InvalidRequest(f"background: {words}", "background")

    def _max_tokens(self) -> int:
        """Return the maximum number of tokens of an answer with logprobs. Raises InvalidRequest."""
        most = MAX_LOGPROB_ENTRIES // (1 + max(0, self.top_logprobs or 0))
        if (self.max_output_tokens or 0) > most:
            words = f"max_output_tokens x (1 + top_logprobs) must be at most {MAX_LOGPROB_ENTRIES:,} with {LOGPROBS}"
            raise InvalidRequest(words, "max_output_tokens")
        return self.max_output_tokens or most

    def _chat(self, items: Sequence[Item], first: int) -> ChatRequest:
        messages = images_after_tools(chat_messages(items, first))
        if self.instructions:
            messages.insert(0, ChatMessage(role="system", content=self.instructions))
        text, choice, logprobs = self.text or TextConfig(), self.tool_choice, LOGPROBS in (self.include or ())
        tools = [tool.chat() for tool in self.tools or () if tool.type == "function"] or None
        named: ToolChoice | None = NamedChoice("function", NamedFunction(choice.name)) if isinstance(choice, NamedTool) else choice
        return ChatRequest(
            messages=messages,
            max_tokens=self._max_tokens() if logprobs else self.max_output_tokens,
            logprobs=logprobs,
            top_logprobs=self.top_logprobs,
            tools=tools,
            # Clients send "auto" without tools too.
            tool_choice=named if tools or named != "auto" else None,
            response_format=None if text.format is None else text.format.chat(),
            reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
            **{name: getattr(self, name) for name in SAME},
        )
