"""The items of a request's `input`, and the chat messages that they become."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from frontends.openai.messages import ChatMessage, Part, sent_image
from frontends.openai.tools import CallBody, CalledFunction
from llmserve import InvalidRequest
from llmserve.images.parts import TEXT_FIELDS

IMAGE = "input_image"


class ItemPart(Part, kw_only=True):
    """A part of an item. `detail` is ignored, as in chats, and only repeated among stored items."""

    detail: str | None = None
    file_id: str | None = None

    def __post_init__(self) -> None:
        if self.type == IMAGE and self.detail is None:
            self.detail = "auto"

    def chat(self, field: str) -> Part:
        """Return the part of a chat, for a text or an image. Raises InvalidRequest."""
        if self.type != IMAGE:
            return self
        if self.file_id is not None:
            name = f"{field}.file_id"
            raise InvalidRequest(f"{name}: the server reads no image from a file; send it as a data URL in image_url", name)
        return sent_image(self.image_url, f"{field}.image_url")


class Item(msgspec.Struct, kw_only=True):
    """An item. Other types have other fields; they are refused by their `type`.

    Clients send the items of an answer back, with states, which are ignored.
    """

    id: str | None = None
    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ItemPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ItemPart] | None = None

    def chat(self, field: str) -> ChatMessage:
        """Return the item as a message of its own. Raises InvalidRequest, which names its field."""
        if self.type == "message" and self.role is not None and self.content is not None:
            return ChatMessage(role=self.role, content=_content(f"{field}.content", self.content, images=self.role != "assistant"))
        if self.type == "reasoning":
            # Encrypted reasoning has no content, and tells this model nothing.
            return ChatMessage(
                role="assistant", reasoning="".join(part.text or "" for part in self.content or () if isinstance(part, Part))
            )
        if self.type == "function_call" and self.call_id is not None and self.name is not None:
            function = CalledFunction(self.name, self.arguments or "{}")
            return ChatMessage(role="assistant", tool_calls=[CallBody(id=self.call_id, type="function", function=function)])
        if self.type == "function_call_output" and self.call_id is not None and self.output is not None:
            return ChatMessage(role="tool", tool_call_id=self.call_id, content=_content(f"{field}.output", self.output))
        if self.type in ("message", "function_call", "function_call_output"):
            raise _wrong(f"an item of the type {self.type} lacks one of its fields")
        raise _wrong(f"items of the type {self.type[:64]!r} are not supported")


# Agents announce tools of other types as an item, which is ignored as in `tools`.
IGNORED = "additional_tools"


def listed(items: Iterable[Item], suffix: str) -> bytes:
    """Return items as clients list them, as JSON: each with an id, which may end with `suffix`."""
    shown = []
    for number, item in enumerate(items):
        if item.type == IGNORED:
            continue
        fields = _without_nulls(msgspec.to_builtins(item))
        if isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            fields["content"] = [{"type": kind, "text": item.content}]
        if item.type == "reasoning":
            fields["summary"] = []
        shown.append({"id": f"{item.type}-{number}-{suffix}", "status": "completed"} | fields)
    return msgspec.json.encode(shown)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def chat_messages(items: Iterable[Item], first: int = 0) -> list[ChatMessage]:
    """Return the items as a conversation. Raises InvalidRequest, which names the item's number.

    `first` is the number of the first item: below 0 for items of earlier responses.

    Reasoning, text and calls of one turn are several items, and one message of a chat.
    """
    messages: list[ChatMessage] = []
    # The reasoning and the calls of the last message, which become its own at once: a message may
    # have thousands of items.
    reasoning: list[str] = []
    calls: list[CallBody] = []
    for number, item in enumerate(items, first):
        if item.type == IGNORED:
            continue
        new = item.chat(f"input[{number}]")
        last = messages[-1] if messages else None
        if last is None or not new.role == last.role == "assistant" or (new.content and (last.content or calls)):
            _complete(messages, reasoning, calls)
            messages.append(new)
            reasoning, calls = [], []
        elif new.content:
            last.content = new.content
        if new.reasoning:
            reasoning.append(new.reasoning)
        calls += new.tool_calls or ()
    _complete(messages, reasoning, calls)
    return messages


def _content(field: str, content: str | list[ItemPart], *, images: bool = True) -> str | list[Part | str]:
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if part.type not in TEXT_FIELDS and not (images and part.type == IMAGE):
            raise InvalidRequest(f"{field}[{number}]: parts of the type {part.type[:64]!r} are not supported", "input")
    return [part.chat(f"{field}[{number}]") for number, part in enumerate(content)]


def _complete(messages: Sequence[ChatMessage], reasoning: Sequence[str], calls: list[CallBody]) -> None:
    """Give the last message its reasoning and calls."""
    if messages:
        messages[-1].reasoning = "".join(reasoning) or None
        messages[-1].tool_calls = calls or None


def _wrong(words: str) -> InvalidRequest:
    return InvalidRequest(f"input: {words}", "input")
