"""Reads the stream of an answer, of completions and of chats: its text, its tokens, its error.

A chunk delivers tokens if it has text, reasoning, a part of a tool call or token ids, or if the
server's running count has grown. A role, an empty text or a usage delivers none. Where the server
counts several chunks together, the tokens are spread over them by the length of their text.
"""

from collections.abc import Callable, Sequence

import attrs
import msgspec

from benchmarks.recording.results import RequestRecord
from benchmarks.workload.requests import Item

NOTHING = msgspec.Raw(b"null")
# What is kept of a server's message, in characters, and of a body that is not a stream, in bytes.
MESSAGE_LENGTH = 300
BODY_LENGTH = 10_000


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Delta(msgspec.Struct):
    """A chat's part of an answer; servers name the reasoning differently, and some send both."""

    content: str | list[msgspec.Raw] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None

    def text(self) -> str:
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(bytes(part).decode(errors="replace") for part in content)
        text += self.reasoning or self.reasoning_content or ""
        text += self.refusal or ""
        calls = [call.function for call in self.tool_calls or () if call.function is not None]
        return text + "".join((call.name or "") + (call.arguments or "") for call in calls)


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    """The fields that are read of a chunk; decoding only these halves the client's time."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    # A union with None would refuse every error, because msgspec accepts only null for a Raw that
    # may be null.
    error: msgspec.Raw = NOTHING
    object: str | None = None
    message: msgspec.Raw = NOTHING
    detail: msgspec.Raw = NOTHING

    @property
    def is_error(self) -> bool:
        """Whether the server reports an error, in OpenAI's form, vLLM's older form or FastAPI's."""
        told = self.choices is None and (self.message != NOTHING or self.detail != NOTHING)
        return self.error != NOTHING or self.object == "error" or told


_decode = msgspec.json.Decoder(_Event).decode


@attrs.define
class Answer:
    """The answer to one request, which fills in its record.

    Attributes:
        error: The server's message, if it reports an error.
        finish_reason: The server's reason for the end of the text.
        token_ids: The ids of the tokens, if the server sends them.
    """

    record: RequestRecord
    error: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] = attrs.field(factory=list)
    _done: bool = False
    # The text of each delivery. The server has counted the tokens of the first deliveries.
    _texts: list[str] = attrs.field(factory=list)
    _settled: int = 0
    _counted: int = 0
    # An incomplete line, an incomplete event, the event's name, and what is no event.
    _rest: bytes = b""
    _part: bytes = b""
    _name: bytes = b""
    _body: bytes = b""

    def feed(self, received: bytes, at: float) -> bool:
        """Take bytes that arrived at a time; return whether the stream has ended."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            self._line(line, at)
            if self._done or self.error is not None:
                return True
        return False

    def end(self, item: Item, at: float, count: Callable[[str], int] | None = None) -> None:
        """Conclude the outcome and the tokens at the stream's end.

        `count` counts the tokens of a text; it is used if the server counts none.
        """
        if not self._done and self.error is None:
            # A last line that was cut off is no message.
            self._line(self._rest, at)
        record, natural = self.record, item.natural
        if self.error is None and self._body and not self._done and self.finish_reason is None and not record.deliveries:
            self.error = f"the answer is not a stream: {message_of(self._body)}"
        complete = self._done or self.finish_reason is not None
        self._count_rest(item.max_tokens, count, complete=complete)
        if self.error is not None:
            record.outcome, record.detail = "error", self.error
        elif not complete:
            record.outcome, record.detail = "truncated", "the stream ended without a finish reason and without [DONE]"
        elif record.completion_tokens == item.max_tokens or natural:
            record.outcome = "ok"
        else:
            reason = f", finish reason {self.finish_reason!r}" if self.finish_reason else ""
            record.outcome, record.detail = "wrong_token_count", f"{record.completion_tokens} tokens, not {item.max_tokens}{reason}"

    def merge(self) -> None:
        """Make one delivery of the tokens that arrived together; call it last, however the answer ended."""
        together: dict[float, int] = {}
        for time, tokens in self.record.deliveries:
            together[time] = together.get(time, 0) + tokens
        self.record.deliveries[:] = together.items()

    def _line(self, line: bytes, at: float) -> None:
        if line.startswith(b"data:"):
            self._data(line[5:].strip(), at)
        elif line.startswith(b"event:"):
            self._name = line[6:].strip()
        elif not line.strip():
            # An empty line ends an event. What is still no JSON is the server's plain message.
            if self._part:
                self.error = message_of(self._part)
            self._name = self._part = b""
        elif not line.startswith((b":", b"id:", b"retry:")):
            self._body = (self._body + line + b"\n")[:BODY_LENGTH]

    def _data(self, data: bytes, at: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        data = self._part + data
        if self._name == b"error":
            self.error = message_of(data)
            return
        try:
            event = _decode(data)
        except msgspec.ValidationError as error:
            self.error = f"the server sent an invalid event: {error}: {message_of(data)}"
            return
        except msgspec.DecodeError:
            # An event may have several lines.
            self._part = data + b"\n"
            return
        self._part = b""
        if event.is_error:
            self.error = message_of(data)
        else:
            self._take(event, at)

    def _take(self, event: _Event, at: float) -> None:
        text = ""
        ids: list[int] = []
        for choice in event.choices or ():
            text += choice.text or ("" if choice.delta is None else choice.delta.text())
            ids += choice.token_ids or ()
            self.finish_reason = choice.finish_reason or self.finish_reason
        if text or ids:
            self._deliver(at, text)
        self.token_ids += ids
        usage = event.usage
        if usage is not None and usage.prompt_tokens:
            self.record.prompt_tokens = usage.prompt_tokens
        if usage is not None and usage.completion_tokens is not None:
            self._count(usage.completion_tokens, at, carries=bool(event.choices))
        elif ids:
            self._count(self._counted + len(ids), at)

    def _deliver(self, at: float, text: str) -> None:
        """Add a delivery, of one token until the server counts it."""
        self.record.deliveries.append((at, 1))
        self.record.completion_tokens += 1
        self._texts.append(text)

    def _count(self, total: int, at: float, *, carries: bool = True) -> None:
        """Give the tokens that the server's count has grown by to the deliveries since its last count.

        `carries` is whether the count came with a choice, so that it may be of tokens without text.
        """
        new, deliveries = total - self._counted, self.record.deliveries
        if new <= 0:
            return
        waiting = len(deliveries) - self._settled
        if not waiting and deliveries and not carries:
            time, tokens = deliveries[-1]
            deliveries[-1] = (time, tokens + new)
        else:
            if not waiting:
                self._deliver(at, "")
                waiting = 1
            counts = spread(new, [len(text) for text in self._texts[self._settled :]])
            if waiting not in (1, new):
                self.record.counted = "spread"
            deliveries[self._settled :] = [(time, count) for (time, _), count in zip(deliveries[self._settled :], counts, strict=True)]
        self._settled, self._counted = len(deliveries), total
        self.record.completion_tokens = total

    def _count_rest(self, wanted: int, count: Callable[[str], int] | None, *, complete: bool) -> None:
        """Count what the server has not counted."""
        record = self.record
        waiting = record.deliveries[self._settled :]
        if not waiting:
            return
        at = waiting[-1][0]
        if complete and self._counted:
            # The server counts no tokens in this text.
            record.deliveries[self._settled :] = [(time, 0) for time, _ in waiting]
            record.completion_tokens = self._counted
        elif complete and self.finish_reason == "length":
            # The answer was cut at its greatest length.
            self._count(wanted, at)
        elif count is not None:
            self._count(self._counted + count("".join(self._texts[self._settled :])), at)
            record.counted = "tokenizer"
        else:
            record.counted = "chunks"


def spread(total: int, lengths: Sequence[int]) -> list[int]:
    """Spread tokens over pieces of text by their lengths: at least one for each, if there are enough."""
    least = int(total >= len(lengths))
    sizes = [max(1, length) for length in lengths]
    length, seen, given, found = sum(sizes), 0, 0, []
    for left, size in zip(range(len(sizes) - 1, -1, -1), sizes, strict=True):
        seen += size
        due = (2 * total * seen + length) // (2 * length)
        due = min(max(due, given + least, 1), total - least * left)
        found.append(due - given)
        given = due
    return found


def message_of(body: bytes) -> str:
    """Return a server's own message: that of a JSON error in one of the usual forms, or the text."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        found = body.decode(errors="replace")
    while isinstance(found, dict) and (inner := next((found[key] for key in ("error", "message", "detail") if found.get(key)), None)):
        found = inner
    text = found if isinstance(found, str) else msgspec.json.encode(found).decode()
    return " ".join(text.split())[:MESSAGE_LENGTH]
