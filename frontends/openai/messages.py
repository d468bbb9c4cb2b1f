"""Messages in OpenAI's format, and the part of them that chat templates use.

Clients send a response's message back unchanged, with all fields that their libraries add. Fields
that templates know are passed on; the others are dropped.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from frontends.openai.sizes import MAX_MESSAGES, Undecoded
from frontends.openai.tools import CallBody
from llmserve import InvalidRequest
from llmserve.images.parts import TEXT_FIELDS, with_parts

IMAGE = "image_url"


class ImageURL(msgspec.Struct):
    """Where an image is. `detail` is ignored: the model's processor chooses the resolution."""

    url: str


class Part(msgspec.Struct, kw_only=True):
    """A part of a message.

    Parts of other types have other fields; they are refused by their `type`.
    """

    type: str
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None
    image_url: ImageURL | str | None = None

    def plain(self) -> str | dict[str, Any]:
        """Return the part for a `GenerationRequest`: a text, or an image. Raises InvalidRequest."""
        if self.type != IMAGE:
            return self.words()
        return {"type": IMAGE, IMAGE: self.image_url.url if isinstance(self.image_url, ImageURL) else self.image_url}

    def words(self) -> str:
        """Return the part's text. Raises InvalidRequest for a part that is not text."""
        field = TEXT_FIELDS.get(self.type)
        if field is None:
            raise InvalidRequest(f"messages: a part of the type {self.type[:64]!r} is not supported here", "messages")
        words: str | None = getattr(self, field)
        if words is None:
            raise InvalidRequest(f"messages: a part of type {self.type} requires {field}", "messages")
        return words


class SentImage(Part, kw_only=True):
    """An image of another API's request. `sent_as` is the client's name of the field that has it."""

    sent_as: str


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message. OpenAI's client adds the fields without a type to the messages of responses."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part | str] | None = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    # The older name of `reasoning`, which some clients still send.
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: Undecoded = msgspec.UNSET
    parsed: Undecoded = msgspec.UNSET
    cache_control: Undecoded = msgspec.UNSET

    def plain(self) -> dict[str, Any]:
        """Return the message for chat templates: text, tool calls and a role that templates know.

        Raises InvalidRequest.
        """
        if self.content is None and self.role != "assistant":
            raise InvalidRequest(f"messages: a message with the role {self.role} requires content", "messages")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise InvalidRequest(
                "messages: tool_call_id is required in a message with the role tool, and not allowed in others", "messages"
            )
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequest("messages: only a message with the role assistant may have tool_calls", "messages")
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self._parts()}
        if self.tool_calls:
            plain["tool_calls"] = [msgspec.to_builtins(call) for call in self.tool_calls]
        reasoning = self.reasoning_content if self.reasoning is None else self.reasoning
        known = {"name": self.name, "reasoning": reasoning, "tool_call_id": self.tool_call_id}
        return plain | {name: value for name, value in known.items() if value is not None}

    def _parts(self) -> str | list[str | dict[str, Any]]:
        """Return the content: a text, or with images a list of parts. Raises InvalidRequest."""
        if not isinstance(self.content, list) or all(isinstance(part, str) or part.type != IMAGE for part in self.content):
            return self.words()
        return [part if isinstance(part, str) else part.plain() for part in self.content]

    def words(self) -> str:
        """Return the message's text. Raises InvalidRequest for a part that is not text."""
        if isinstance(self.content, list):
            return "\n".join(part if isinstance(part, str) else part.words() for part in self.content)
        return self.content or ""


def plain_messages(messages: Sequence[ChatMessage]) -> Sequence[Mapping[str, Any]]:
    """Return the messages of a `GenerationRequest`. Raises InvalidRequest."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold 1 to {MAX_MESSAGES} messages", "messages")
    # A message answers each call, so a valid conversation has no more calls than messages.
    if sum(len(message.tool_calls or ()) for message in messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold at most {MAX_MESSAGES} tool_calls together", "messages")
    # Several choices share the images, so that their text is copied once.
    return with_parts([message.plain() for message in messages]) or ()


def final_message(add: bool | None, resume: bool | None) -> dict[str, bool]:  # noqa: FBT001 - the fields' own
    """Return the template's arguments for `add_generation_prompt` and `continue_final_message`."""
    if add and resume:
        raise InvalidRequest("continue_final_message and add_generation_prompt exclude each other", "continue_final_message")
    if resume:
        return {"add_generation_prompt": False, "continue_final_message": True}
    return {} if add is None else {"add_generation_prompt": add}


# Chats that requests of other APIs become


def sent_image(url: ImageURL | str | None, sent_as: str) -> SentImage:
    """Return the part of a chat for an image, whose URL the chat checks."""
    return SentImage(type=IMAGE, image_url=url if isinstance(url, str) else None, sent_as=sent_as)


def images_after_tools(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Move the images of tools' results into a message of the user behind them.

    In OpenAI's chats the message of a tool has only text, and many chat templates leave out an image
    that is elsewhere than in a message of the user.
    """
    found: list[ChatMessage] = []
    images: list[Part | str] = []
    for message in messages:
        if images and message.role != "tool":
            if message.role == "user":
                content = [message.content] if isinstance(message.content, str) else message.content
                message.content = images + [part for part in content or () if part]
            else:
                found.append(ChatMessage(role="user", content=images))
            images = []
        if message.role == "tool" and isinstance(message.content, list):
            images += (part for part in message.content if isinstance(part, SentImage))
            message.content = [part for part in message.content if not isinstance(part, SentImage)]
        found.append(message)
    return [*found, ChatMessage(role="user", content=images)] if images else found


def image_names(messages: Sequence[ChatMessage]) -> dict[str, str]:
    """Return the client's names of the images by those of the chat's fields."""
    return {
        f"messages[{number}].content[{index}].image_url.url": part.sent_as
        for number, message in enumerate(messages)
        if isinstance(message.content, list)
        for index, part in enumerate(message.content)
        if isinstance(part, SentImage)
    }
