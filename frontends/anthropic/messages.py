"""Messages of content blocks, and the chat messages that they become."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from frontends.openai.messages import ChatMessage, Part, sent_image
from frontends.openai.tools import CallBody, CalledFunction
from llmserve import InvalidRequest


class Source(msgspec.Struct, kw_only=True):
    """Where an image is. `media_type` is checked only roughly: the file says its format itself."""

    type: str = ""
    media_type: str | None = None
    data: str | None = None


_SOURCE = msgspec.json.Decoder(Source)


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
    # Decoded for an image only: blocks of a type that is refused may have anything here.
    source: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    def call(self) -> CallBody:
        """Return the tool call of a block of type tool_use. Raises InvalidRequest."""
        arguments = b"{}" if self.input is msgspec.UNSET else bytes(self.input).strip()
        if self.id is None or self.name is None or not arguments.startswith(b"{"):
            raise _wrong("a tool_use block requires id, name, and an object as input")
        return CallBody(id=self.id, type="function", function=CalledFunction(self.name, arguments.decode()))

    def result(self, field: str) -> ChatMessage:
        """Return the message of a block of type tool_result. Raises InvalidRequest."""
        if self.tool_use_id is None:
            raise _wrong("a tool_result block requires tool_use_id")
        blocks = [Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content or ()
        parts: list[Part | str] = [block.part(f"{field}.content[{index}]") for index, block in enumerate(blocks)]
        return ChatMessage(role="tool", tool_call_id=self.tool_use_id, content=parts)

    def part(self, field: str) -> Part:
        """Return the part of a block of type text or image. Raises InvalidRequest, which names an image's field."""
        if self.type == "text" and self.text is not None:
            return Part(type="text", text=self.text)
        if self.type != "image":
            raise _wrong(f"this route supports only text and images, but a content block has the type {self.type[:64]!r}")
        source = self._source(f"{field}.source")
        if source.type != "base64":
            words = f"the server fetches no image and keeps none; send it with a source of the type base64, not {source.type[:64]!r}"
            raise _wrong(words, f"{field}.source.type")
        if not (source.media_type or "").startswith("image/"):
            raise _wrong("must be image/png, image/jpeg, image/webp or image/gif", f"{field}.source.media_type")
        if source.data is None:
            raise _wrong("an image requires data", f"{field}.source.data")
        # As in chats, the format is found in the file.
        return sent_image(f"data:image/unknown;base64,{source.data}", f"{field}.source.data")

    def _source(self, field: str) -> Source:
        """Return where an image is. Raises InvalidRequest, which names the field."""
        if self.source is msgspec.UNSET:
            raise _wrong("an image requires source", field)
        try:
            return _SOURCE.decode(self.source)
        except msgspec.ValidationError as error:
            raise _wrong(str(error), field) from None


class MessageBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    def chat(self, number: int) -> Iterator[ChatMessage]:
        """Yield the message as chat messages: each tool's result is one.

        `number` is the message's place. Raises InvalidRequest.
        """
        blocks = self.content if isinstance(self.content, list) else [Block(type="text", text=self.content)] if self.content else []
        calls: list[CallBody] = []
        parts: list[Part | str] = []
        thinking: list[str] = []
        for index, block in enumerate(blocks):
            field = f"messages[{number}].content[{index}]"
            if block.type in ("tool_result", "image") and self.role != "user":
                raise _wrong(f"only a message with the role user may have {block.type} blocks")
            match block.type:
                case "tool_result":
                    yield block.result(field)
                case "tool_use":
                    calls.append(block.call())
                case "thinking":
                    thinking.append(block.thinking or "")
                case "redacted_thinking":
                    # Encrypted reasoning of another server tells this model nothing.
                    pass
                case _:
                    parts.append(block.part(field))
        reasoning = "".join(thinking)
        if parts or calls or reasoning or not blocks:
            yield ChatMessage(role=self.role, content=parts, tool_calls=calls or None, reasoning=reasoning or None)


def texts(content: str | Sequence[Block], field: str) -> str | list[Part | str]:
    """Return a content's text parts. Raises InvalidRequest for a block that is not text."""
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise _wrong(f"only text is supported here, but a content block has the type {block.type[:64]!r}", field)
    return [Part(type="text", text=block.text) for block in content]


def _wrong(words: str, field: str = "messages") -> InvalidRequest:
    return InvalidRequest(f"{field}: {words}", field)
