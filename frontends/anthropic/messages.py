"""Messages of content blocks, and the chat messages that they become."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from frontends.openai.messages import ChatMessage, Part
from frontends.openai.tools import CallBody, CalledFunction
from llmserve import InvalidRequest


class Block(msgspec.Struct, kw_only=True):
    """A content block. Other types have other fields; they are refused by their `type`.

    Fields that change no prompt, such as `cache_control` and `signature`, are ignored.
    """

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    # JSON that the chat template decodes.
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None

    def call(self) -> CallBody:
        """Return the tool call of a block of type tool_use. Raises InvalidRequest."""
        arguments = b"{}" if self.input is msgspec.UNSET else bytes(self.input).strip()
        if self.id is None or self.name is None or not arguments.startswith(b"{"):
            raise _wrong("a tool_use block requires id, name, and an object as input")
        return CallBody(id=self.id, type="function", function=CalledFunction(self.name, arguments.decode()))

    def result(self) -> ChatMessage:
        """Return the message of a block of type tool_result. Raises InvalidRequest."""
        if self.tool_use_id is None:
            raise _wrong("a tool_result block requires tool_use_id")
        return ChatMessage(role="tool", tool_call_id=self.tool_use_id, content=texts(self.content or "", "messages"))


class MessageBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    def chat(self) -> Iterator[ChatMessage]:
        """Yield the message as chat messages: each tool's result is one. Raises InvalidRequest."""
        blocks = [Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        kinds: dict[str, list[Block]] = {}
        for block in blocks:
            kinds.setdefault(block.type, []).append(block)
        # Encrypted reasoning of another server tells this model nothing.
        kinds.pop("redacted_thinking", None)
        for block in kinds.pop("tool_result", ()):
            yield block.result()
            if self.role != "user":
                raise _wrong("only a message with the role user may have tool_result blocks")
        calls = [block.call() for block in kinds.pop("tool_use", ())]
        thinking = "".join(block.thinking or "" for block in kinds.pop("thinking", ()))
        rest = [block for found in kinds.values() for block in found]
        if rest or calls or thinking or not blocks:
            content = texts(rest, "messages")
            yield ChatMessage(role=self.role, content=content, tool_calls=calls or None, reasoning=thinking or None)


def texts(content: str | Sequence[Block], field: str) -> str | list[Part | str]:
    """Return a content's text parts. Raises InvalidRequest for a block that is not text."""
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise _wrong(f"this route supports only text, but a content block has the type {block.type[:64]!r}", field)
    return [Part(type="text", text=block.text) for block in content]


def _wrong(words: str, field: str = "messages") -> InvalidRequest:
    return InvalidRequest(f"{field}: {words}", field)
