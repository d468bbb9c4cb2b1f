"""How much a large body may hold, field by field, counted in its bytes before anything is made of them.

Decoding 4 MiB takes up to 1.4 s where they hold a million small lists or dictionaries, because Python's garbage collector counts each of
them. Finding the fields' bytes takes 13 ms for any content. The bounds are far above what a request needs; the exact ones
stand where a field is checked.
"""

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import msgspec

from frontends.openai import unsupported
from llmserve import GenerationRequest, InvalidRequest, PromptTooLong
from llmserve.request import MAX_LOGPROB_ENTRIES

# Bytes of a schema, a grammar or tools; `llmserve.structured` allows 65,536 characters.
MAX_SCHEMA = 2**17
# Bytes of any other field that is not named here, and of what belongs to no field.
MAX_FIELD = 2**16
# Prompts of one request, token ids in all of them together, and messages.
MAX_PROMPTS = 64
MAX_IDS = 2**19
MAX_MESSAGES = 2048
# Strings in a conversation, its fields' names among them; a message that calls a function has 13. In MessagePack: parts and calls.
MAX_STRINGS = 16 * MAX_MESSAGES
MAX_PARTS = 4 * MAX_MESSAGES

SCHEMAS = frozenset({"tools", "response_format", "structured_outputs"})
# The type of a field that may hold anything, because the server does not look at it.
Undecoded = msgspec.Raw | msgspec.UnsetType

_FIRST = re.compile(rb"\s*\[\s*(.)", re.DOTALL)
_TEXTS = msgspec.json.Decoder(list[str])


class Sizes:
    """Of one kind of body. `scanner` decodes a body into its fields' bytes, for `check`."""

    def __init__(self, kind: type[msgspec.Struct], codec: ModuleType) -> None:
        fields = msgspec.structs.fields(kind)
        self.scanner = codec.Decoder(_scanned(*(field.encode_name for field in fields), *unsupported.of(kind)))
        # Those that nothing is decoded of.
        self._ignored = {field.encode_name for field in fields if field.type == Undecoded}
        self._counts: _JSONCounts | _MessagePackCounts = _JSONCounts() if codec is msgspec.json else _MessagePackCounts()

    def check(self, found: Any, size: int, context: int | None) -> None:
        """`size` is the whole body's, `context` the model's in tokens. Raises InvalidRequest for the first field that is too large."""
        for name in found.__struct_fields__:
            value: msgspec.Raw = getattr(found, name)
            size -= len(value)
            if name not in self._ignored:
                self._check(name, value, context)
        if size > MAX_FIELD:
            raise InvalidRequest(f"{size:,} bytes of the body are between its fields, or of fields that it repeats")

    def _check(self, name: str, value: msgspec.Raw, context: int | None) -> None:
        if name == "messages":
            self._counts.check_messages(value)
        elif name in ("prompt", "tokens"):
            self._counts.check_ids(name, value, context or MAX_IDS)
        else:
            size, most = len(value), MAX_SCHEMA if name in SCHEMAS else MAX_FIELD
            if size > most:
                raise InvalidRequest(f"{name} has {size:,} bytes, and may have {most:,}", name)


def check_answer(requests: Sequence[GenerationRequest], context: int) -> None:
    """Bounds the logprobs of all choices together; of one choice the manager does. `context` is the model's, in tokens. Raises
    InvalidRequest."""
    sampling = requests[0].sampling
    if len(requests) == 1:
        return
    _check_prompts(requests, context)
    if sampling.logprobs is None:
        return
    tokens = min(sampling.max_tokens or context, context)
    if len(requests) * tokens * (1 + sampling.logprobs) > MAX_LOGPROB_ENTRIES:
        asked = f"{len(requests)} choices of up to {tokens:,} tokens with logprobs {sampling.logprobs}"
        raise InvalidRequest(f"{asked}: choices x tokens x (1 + logprobs) may be at most {MAX_LOGPROB_ENTRIES:,}", "n")


def _check_prompts(requests: Sequence[GenerationRequest], context: int) -> None:
    """Bounds what the answer repeats of the prompts: their token ids, and their logprobs. Of one prompt alone, all that a chat has,
    the manager does."""
    count, repeated = requests[0].sampling.prompt_logprobs, requests[0].return_prompt_ids
    asking = [one for one in requests if one.return_prompt_ids or one.sampling.prompt_logprobs is not None]
    if len(asking) < 2:
        return
    tokens = sum(_most_tokens(request, context) for request in asking)
    if count is not None and tokens * (1 + count) > MAX_LOGPROB_ENTRIES:
        asked = f"{len(requests)} choices of prompts of up to {tokens:,} tokens together, with the logprobs of {count} alternatives"
        raise InvalidRequest(f"{asked}: tokens x (1 + alternatives) may be at most {MAX_LOGPROB_ENTRIES:,}", "n")
    if repeated and tokens > MAX_IDS:
        words = f"{len(requests)} choices would repeat up to {tokens:,} token ids of their prompts, and may repeat {MAX_IDS:,}"
        raise InvalidRequest(words, "n")


def _most_tokens(request: GenerationRequest, context: int) -> int:
    """Tokens that the prompt may have: no token stands for less than a byte, but for the one that may begin a text."""
    match request.prompt:
        case None:
            return context
        case str():
            return min(context, len(request.prompt.encode()) + 1)
        case _:
            return min(context, len(request.prompt))


class _JSONCounts:
    """By the characters that separate things."""

    def check_messages(self, value: msgspec.Raw) -> None:
        strings = _strings(bytes(value))
        if strings > MAX_STRINGS:
            raise _too_many("messages", strings, "strings, names of fields included", MAX_STRINGS)

    def check_ids(self, name: str, value: msgspec.Raw, context: int) -> None:
        first = _FIRST.match(value)
        if first is None:
            return
        text = bytes(value)
        if first[1] == b'"':
            if _strings(text) > MAX_PROMPTS:
                raise _too_many(name, _strings(text), "texts", MAX_PROMPTS)
            # Of this list alone the commas say nothing.
            try:
                _TEXTS.decode(text)
            except msgspec.ValidationError:
                raise InvalidRequest(f"{name} must hold texts alone, or token ids alone", name) from None
            return
        count, lists = text.count(b",") + 1, text.count(b"[") - 1
        if lists > MAX_PROMPTS:
            raise _too_many(name, lists, "lists", MAX_PROMPTS)
        if first[1] == b"[" and count > MAX_IDS:
            raise _too_many(name, count, "token ids", MAX_IDS)
        if first[1] != b"[" and count > context:
            raise _too_long(name, count, context)


class _MessagePackCounts:
    """By the lengths that stand before lists."""

    def __init__(self) -> None:
        # Those two are counted. What else a message has, is for the typed decoder to refuse.
        message: Any = _scanned("content", "tool_calls", forbid_unknown=False)
        self._messages: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[message])

    def check_messages(self, value: msgspec.Raw) -> None:
        if _length(value) > MAX_MESSAGES:
            raise _too_many("messages", _length(value), "messages", MAX_MESSAGES)
        try:
            messages = self._messages.decode(value)
        except msgspec.MsgspecError:
            # The typed decoder stops at the same place, and says it better.
            return
        parts = sum(_length(message.content) + _length(message.tool_calls) for message in messages)
        if parts > MAX_PARTS:
            raise _too_many("messages", parts, "parts and calls", MAX_PARTS)

    def check_ids(self, name: str, value: msgspec.Raw, context: int) -> None:
        if _length(value) > context:
            raise _too_long(name, _length(value), context)


def _scanned(*names: str, forbid_unknown: bool = True) -> Any:
    """A struct that has the bytes of these fields."""
    fields = [(name, msgspec.Raw, msgspec.Raw()) for name in names]
    return msgspec.defstruct("Scanned", fields, kw_only=True, forbid_unknown_fields=forbid_unknown)


def _strings(text: bytes) -> int:
    """Strings in some JSON; some are missed where a text ends in a backslash, but no more than every second one."""
    return (text.count(b'"') - text.count(b'\\"')) // 2


def _length(value: msgspec.Raw) -> int:
    """Elements of a list in MessagePack; 0 for anything else."""
    head = bytes(memoryview(value)[:5])
    if head[:1] == b"\xdd":
        return int.from_bytes(head[1:], "big")
    if head[:1] == b"\xdc":
        return int.from_bytes(head[1:3], "big")
    return head[0] & 0x0F if head and head[0] & 0xF0 == 0x90 else 0


def _too_long(name: str, count: int, context: int) -> InvalidRequest:
    if name == "prompt":
        return PromptTooLong(count, context, name)
    return InvalidRequest(f"{name} has {count:,} token ids, and the model's context has {context:,}", name)


def _too_many(name: str, count: int, what: str, most: int) -> InvalidRequest:
    return InvalidRequest(f"{name} has {count:,} {what}, and may have {most:,}", name)
