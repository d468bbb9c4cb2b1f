"""Writes answers in Anthropic's format, complete or as named events."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal

import msgspec

from frontends.anthropic.errors import error_of
from frontends.net.turns import WorkQueue
from frontends.openai import sse
from frontends.openai.response_builder import ResponseBuilder
from llmserve import Completion, Delta, LLMServeError, TokenStream, Usage

Kind = Literal["text", "thinking", "tool_use"]


class MessagesUsage(msgspec.Struct, frozen=True):
    """`input_tokens` are those that the engine did not find in its cache.

    The engine caches all prompts without being asked, so no tokens count as written to the cache.
    """

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class ContentBlock(msgspec.Struct, kw_only=True):
    """A block of the answer; each type has its own fields."""

    type: Kind
    text: str | msgspec.UnsetType = msgspec.UNSET
    thinking: str | msgspec.UnsetType = msgspec.UNSET
    signature: str | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    input: Any = msgspec.UNSET


class MessagesAnswer(msgspec.Struct, kw_only=True):
    """The complete answer, or its head in a stream."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: Sequence[ContentBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessagesUsage


class MessagesResponseBuilder(ResponseBuilder):
    """Writes the answers of /v1/messages. In a stream at most one block is open."""

    prefix = "msg"

    def __init__(self, request_id: str, model: str) -> None:
        super().__init__(request_id, model)
        self._started = False
        self._count = 0
        # The type of the open block, and the index of the open block's call.
        self._open: tuple[Kind, int] | None = None
        self._has_calls = False
        self._stop: tuple[str | None, str | None] = (None, None)

    async def whole(self, completions: Sequence[Completion], per_prompt: int, turns: WorkQueue) -> AsyncIterator[bytes]:
        (completion,) = completions
        blocks = list(_blocks(completion))
        calls = any(block.type == "tool_use" for block in blocks)
        reason = _stopped(completion.finish_reason, completion.stop_reason, calls=calls)
        yield sse.encode(self._message(blocks, completion.usage, *reason))

    def begin(self, streams: Sequence[TokenStream]) -> None:
        (self._stream,) = streams

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        events = list(self._content(delta))
        if delta.finish_reason is not None:
            self._stop = _stopped(delta.finish_reason, delta.stop_reason, calls=self._has_calls)
        return self._start() + b"".join(events) if events else b""

    def end(self, usages: Sequence[Usage], per_prompt: int, *, usage: bool) -> bytes:
        reason, sequence = self._stop
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        last = _event("message_delta", delta=delta, usage=_usage(usages[0]))
        return self._start() + self._close() + last + _event("message_stop")

    def failure(self, error: LLMServeError) -> bytes:
        return b"event: error\n" + sse.event(error_of(error))

    def _start(self) -> bytes:
        """Return the stream's first event, once: with the first token, whose time clients measure."""
        if self._started:
            return b""
        self._started = True
        # Whether a prompt was in the cache is known at the end.
        usage = Usage(self._stream.usage.prompt_tokens, 0)
        return _event("message_start", message=self._message((), usage, None, None))

    def _content(self, delta: Delta) -> Iterator[bytes]:
        message = delta.message
        if message is None:
            yield from self._piece("text", "text_delta", delta.text)
            return
        yield from self._piece("thinking", "thinking_delta", message.reasoning)
        yield from self._piece("text", "text_delta", message.content)
        for call in message.tool_calls:
            if call.name is not None:
                self._has_calls = True
                block = ContentBlock(type="tool_use", id=call.id or f"call_{call.index}", name=call.name, input={})
                yield self._begin_block(("tool_use", call.index), block)
            if call.arguments and self._open == ("tool_use", call.index):
                yield _event(
                    "content_block_delta", index=self._count - 1, delta={"type": "input_json_delta", "partial_json": call.arguments}
                )

    def _piece(self, kind: Literal["text", "thinking"], name: str, text: str) -> Iterator[bytes]:
        if not text:
            return
        if self._open != (kind, 0):
            yield self._begin_block((kind, 0), _text_block(kind, ""))
        yield _event("content_block_delta", index=self._count - 1, delta={"type": name, kind: text})

    def _begin_block(self, what: tuple[Kind, int], block: ContentBlock) -> bytes:
        closed, self._open = self._close(), what
        self._count += 1
        return closed + _event("content_block_start", index=self._count - 1, content_block=block)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._count - 1)

    def _message(self, content: Sequence[ContentBlock], usage: Usage, reason: str | None, sequence: str | None) -> MessagesAnswer:
        counted = _usage(usage)
        return MessagesAnswer(id=self.id, model=self.model, content=content, stop_reason=reason, stop_sequence=sequence, usage=counted)


def _blocks(completion: Completion) -> Iterator[ContentBlock]:
    message = completion.message
    if message is None:
        yield _text_block("text", completion.text)
        return
    if message.reasoning:
        yield _text_block("thinking", message.reasoning)
    if message.content or not message.tool_calls:
        yield _text_block("text", message.content)
    for call in message.tool_calls:
        try:
            arguments = msgspec.json.decode(call.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            # The answer ended before the arguments did.
            arguments = {"arguments": call.arguments}
        yield ContentBlock(type="tool_use", id=call.id or f"call_{call.index}", name=call.name or "", input=arguments)


def _text_block(kind: Literal["text", "thinking"], text: str) -> ContentBlock:
    # Clients send the signature back, and nothing here reads it.
    return ContentBlock(type="text", text=text) if kind == "text" else ContentBlock(type="thinking", thinking=text, signature="")


def _stopped(reason: str | None, stop: str | int | None, *, calls: bool) -> tuple[str, str | None]:
    """Return Anthropic's `stop_reason` and `stop_sequence`."""
    if reason == "length":
        return "max_tokens", None
    if calls:
        return "tool_use", None
    return ("stop_sequence", stop) if isinstance(stop, str) else ("end_turn", None)


def _usage(usage: Usage) -> MessagesUsage:
    return MessagesUsage(usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens, usage.cached_tokens)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\n" % kind.encode() + sse.event({"type": kind, **fields})
