"""Messages on OpenAI's wire, and what chat templates know of them.

Clients send a response back as its message came, with everything that their libraries add to it. What templates know is passed on, and
what they do not know is left out.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from frontends.openai.sizes import MAX_MESSAGES, Undecoded
from frontends.openai.tools import CallBody
from llmserve import InvalidRequest

# Which field of a part holds its text, for each type of part that vLLM renders as text.
TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}


class Part(msgspec.Struct, kw_only=True):
    """A part of a message. Other types have fields that are not listed here, and `type` is why they are refused."""

    type: str
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None

    def words(self) -> str:
        """Raises InvalidRequest for anything but text."""
        field = TEXT_FIELDS.get(self.type)
        if field is None:
            raise InvalidRequest(f"messages: this model takes text only, and a part has the type {self.type[:64]!r}", "messages")
        words: str | None = getattr(self, field)
        if words is None:
            raise InvalidRequest(f"messages: a part of the type {self.type} needs {field}", "messages")
        return words


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message. The fields without a type are those that OpenAI's client adds to the messages of responses."""

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
        """As chat templates know it: text, calls, and no role newer than they are. Raises InvalidRequest."""
        if self.content is None and self.role != "assistant":
            raise InvalidRequest(f"messages: a message of the role {self.role} needs content", "messages")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise InvalidRequest("messages: tool_call_id belongs to a message of the role tool, which needs it", "messages")
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequest("messages: only the assistant makes tool_calls", "messages")
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self._words()}
        if self.tool_calls:
            plain["tool_calls"] = [msgspec.to_builtins(call) for call in self.tool_calls]
        reasoning = self.reasoning_content if self.reasoning is None else self.reasoning
        known = {"name": self.name, "reasoning": reasoning, "tool_call_id": self.tool_call_id}
        return plain | {name: value for name, value in known.items() if value is not None}

    def _words(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part if isinstance(part, str) else part.words() for part in self.content)
        return self.content or ""


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Raises InvalidRequest."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold 1 to {MAX_MESSAGES} messages", "messages")
    # Each call is answered by a message, so there are no more of them in a conversation that makes sense.
    if sum(len(message.tool_calls or ()) for message in messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold at most {MAX_MESSAGES} tool_calls together", "messages")
    return [message.plain() for message in messages]
