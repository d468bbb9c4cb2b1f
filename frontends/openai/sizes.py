"""Size limits for the fields of a large body, checked on its bytes before decoding.

Decoding 4 MiB with a million small lists or dictionaries takes up to 1.4 s, because Python's
garbage collector counts each of them. Finding the fields' bytes takes 13 ms for any content. These
limits are far above what a request needs; each field's own check has the exact limit.
"""

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import msgspec

from frontends.openai import unsupported
from llmserve import GenerationRequest, InvalidRequest, PromptTooLong
from llmserve.request import MAX_LOGPROB_ENTRIES

# Maximum bytes of a schema, a grammar or tools; `llmserve.structured` allows 65,536 characters.
MAX_SCHEMA = 2**17
# Maximum bytes of any other field, and of the bytes outside of fields.
MAX_FIELD = 2**16
# Maximum numbers of prompts of one request, of token ids in all of them, and of messages.
MAX_PROMPTS = 64
MAX_IDS = 2**19
MAX_MESSAGES = 2048
# Maximum number of strings in a JSON conversation, including field names; a message that calls a
# function has 13. For MessagePack: maximum number of parts and calls.
MAX_STRINGS = 16 * MAX_MESSAGES
MAX_PARTS = 4 * MAX_MESSAGES
# Maximum number of texts of `metadata`, and of characters of their keys and of each.
MAX_METADATA, MAX_KEY, MAX_VALUE = 16, 64, 512

# `sampling_params` has a schema inside.
SCHEMAS = frozenset({"tools", "response_format", "structured_outputs", "sampling_params"})
# The fields that hold a prompt or several, as texts or token ids. A type of body may have others,
# as `id_fields`, and another maximum number of prompts, as `max_inputs`.
ID_FIELDS = frozenset({"prompt", "tokens", "token_ids"})
# The type of a field with any content, which the server does not decode.
Undecoded = msgspec.Raw | msgspec.UnsetType

_FIRST = re.compile(rb"\s*\[\s*(.)", re.DOTALL)
_EMPTY = re.compile(rb"\{\s*\}|\[\s*\]")
_TEXTS = msgspec.json.Decoder(list[str])


class Sizes:
    """The size limits of one type of body. `scanner` decodes a body into its fields' bytes."""

    def __init__(self, kind: type[msgspec.Struct], codec: ModuleType) -> None:
        fields = msgspec.structs.fields(kind)
        self.scanner = codec.Decoder(_scanned(*(field.encode_name for field in fields), *unsupported.of(kind)))
        # Fields that are never decoded.
        self._id_fields = getattr(kind, "id_fields", ID_FIELDS)
        self._most = getattr(kind, "max_inputs", MAX_PROMPTS)
        self._ignored = {field.encode_name for field in fields if field.type == Undecoded}
        self._counts: _JSONCounts | _MessagePackCounts = _JSONCounts() if codec is msgspec.json else _MessagePackCounts()

    def check(self, found: Any, size: int, context: int | None) -> None:
        """Check the fields. Raises InvalidRequest for the first field that is too large.

        Args:
            found: the body, as decoded by `scanner`.
            size: the body's size in bytes.
            context: the model's context length in tokens, if known.
        """
        if bytes(getattr(found, "truncate_prompt_tokens", b"")) not in (b"", b"null"):
            # The prompt may be longer than the context.
            context = MAX_IDS
        for name in found.__struct_fields__:
            value: msgspec.Raw = getattr(found, name)
            size -= len(value)
            if name not in self._ignored:
                self._check(name, value, context)
        if size > MAX_FIELD:
            raise InvalidRequest(f"{size:,} bytes of the body are outside of its fields or in repeated fields")

    def _check(self, name: str, value: msgspec.Raw, context: int | None) -> None:
        if name in self._id_fields:
            self._counts.check_ids(name, value, context or MAX_IDS, self._most)
        elif name in ("messages", "system", "input", "instructions", "documents"):
            self._counts.check_messages(name, value)
        else:
            size, most = len(value), MAX_SCHEMA if name in SCHEMAS else MAX_FIELD
            if size > most:
                raise InvalidRequest(f"{name} has {size:,} bytes, but may have at most {most:,}", name)


def check_answer(requests: Sequence[GenerationRequest], context: int) -> None:
    """Check the number of logprobs in an answer of several choices. Raises InvalidRequest.

    The manager checks a single choice. `context` is the model's context length in tokens.
    """
    sampling = requests[0].sampling
    if len(requests) == 1:
        return
    _check_prompts(requests, context)
    if sampling.logprobs is None:
        return
    tokens = min(sampling.max_tokens or context, context)
    if len(requests) * tokens * (1 + sampling.logprobs) > MAX_LOGPROB_ENTRIES:
        asked = f"{len(requests)} choices of up to {tokens:,} tokens with logprobs {sampling.logprobs}"
        raise InvalidRequest(f"{asked}: choices x tokens x (1 + logprobs) must be at most {MAX_LOGPROB_ENTRIES:,}", "n")


def _check_prompts(requests: Sequence[GenerationRequest], context: int) -> None:
    """Check the token ids and logprobs of the prompts that the answer repeats.

    The manager checks a single prompt, and chat has only one.
    """
    count, repeated = requests[0].sampling.prompt_logprobs, requests[0].return_prompt_ids
    asking = [one for one in requests if one.return_prompt_ids or one.sampling.prompt_logprobs is not None]
    if len(asking) < 2:
        return
    tokens = sum(_most_tokens(request, context) for request in asking)
    if count is not None and tokens * (1 + count) > MAX_LOGPROB_ENTRIES:
        asked = f"{len(requests)} choices with prompts of up to {tokens:,} tokens in total and logprobs of {count} alternatives"
        raise InvalidRequest(f"{asked}: tokens x (1 + alternatives) must be at most {MAX_LOGPROB_ENTRIES:,}", "n")
    if repeated and tokens > MAX_IDS:
        words = f"{len(requests)} choices would repeat up to {tokens:,} token ids of their prompts, but may repeat at most {MAX_IDS:,}"
        raise InvalidRequest(words, "n")


def _most_tokens(request: GenerationRequest, context: int) -> int:
    """Return the maximum number of the prompt's tokens.

    Each token has at least one byte, except the one that may begin a text.
    """
    match request.prompt:
        case None:
            return context
        case str():
            return min(context, len(request.prompt.encode()) + 1)
        case _:
            return min(context, len(request.prompt))


def check_metadata(metadata: dict[str, str] | None) -> dict[str, str]:
    """Return what a client notes about an object, empty for None. Raises InvalidRequest."""
    metadata = metadata or {}
    if len(metadata) > MAX_METADATA or any(len(key) > MAX_KEY or len(value) > MAX_VALUE for key, value in metadata.items()):
        words = f"metadata takes at most {MAX_METADATA} texts of {MAX_VALUE} characters, with keys of {MAX_KEY}"
        raise InvalidRequest(words, "metadata")
    return metadata


class _JSONCounts:
    """Counts elements of JSON by its separators, without decoding."""

    def check_messages(self, name: str, value: msgspec.Raw) -> None:
        # An object has a string for each field's name, and a list has items, unless it is empty.
        text = bytes(value)
        strings = _strings(text)
        # There are at most as many empty ones as opening brackets. The search for them takes ten
        # times as long as all counts together: 8 ms for an image of 1.7 MB.
        if strings + text.count(b"{") + text.count(b"[") > MAX_STRINGS:
            strings += sum(1 for _ in _EMPTY.finditer(text))
        if strings > MAX_STRINGS:
            raise _too_many(name, strings, "strings, field names and empty lists included", MAX_STRINGS)

    def check_ids(self, name: str, value: msgspec.Raw, context: int, most: int) -> None:
        first = _FIRST.match(value)
        if first is None:
            return
        text = bytes(value)
        if first[1] == b'"':
            if _strings(text) > most:
                raise _too_many(name, _strings(text), "texts", most)
            # Commas in texts would count too, so this list is decoded.
            try:
                _TEXTS.decode(text)
            except msgspec.ValidationError:
                raise InvalidRequest(f"{name} must hold only texts or only token ids", name) from None
            return
        count, lists = text.count(b",") + 1, text.count(b"[") - 1
        if lists > most:
            raise _too_many(name, lists, "lists", most)
        if first[1] == b"[" and count > MAX_IDS:
            raise _too_many(name, count, "token ids", MAX_IDS)
        if first[1] != b"[" and count > context:
            raise _too_long(name, count, context)


class _MessagePackCounts:
    """Counts elements of MessagePack by the lengths before lists, without decoding."""

    def __init__(self) -> None:
        # Only these two fields are counted. The typed decoder refuses unknown ones.
        message: Any = _scanned("content", "tool_calls", forbid_unknown=False)
        self._messages: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[message])

    def check_messages(self, name: str, value: msgspec.Raw) -> None:
        if _length(value) > MAX_MESSAGES:
            raise _too_many(name, _length(value), "messages", MAX_MESSAGES)
        try:
            messages = self._messages.decode(value)
        except msgspec.MsgspecError:
            # The typed decoder fails at the same place with a better message.
            return
        parts = sum(_length(message.content) + _length(message.tool_calls) for message in messages)
        if parts > MAX_PARTS:
            raise _too_many(name, parts, "parts and calls", MAX_PARTS)

    def check_ids(self, name: str, value: msgspec.Raw, context: int, most: int) -> None:
        if _length(value) > context:
            raise _too_long(name, _length(value), context)


def _scanned(*names: str, forbid_unknown: bool = True) -> Any:
    """Return a struct type that holds the bytes of these fields."""
    fields = [(name, msgspec.Raw, msgspec.Raw()) for name in names]
    return msgspec.defstruct("Scanned", fields, kw_only=True, forbid_unknown_fields=forbid_unknown)


def _strings(text: bytes) -> int:
    """Return the number of strings in JSON.

    Texts that end in a backslash are miscounted, but at least half of all strings are counted.
    """
    # Two bytes take ten times as long to count as one: 4 ms for an image of 3 MB, which has no backslash.
    escaped = text.count(b'\\"') if b"\\" in text else 0
    return (text.count(b'"') - escaped) // 2


def _length(value: msgspec.Raw) -> int:
    """Return the number of elements of a MessagePack list; 0 for any other value."""
    head = bytes(memoryview(value)[:5])
    if head[:1] == b"\xdd":
        return int.from_bytes(head[1:], "big")
    if head[:1] == b"\xdc":
        return int.from_bytes(head[1:3], "big")
    return head[0] & 0x0F if head and head[0] & 0xF0 == 0x90 else 0


def _too_long(name: str, count: int, context: int) -> InvalidRequest:
    if name != "tokens":
        return PromptTooLong(count, context, name)
    return InvalidRequest(f"{name} has {count:,} token ids, but the model's context length is {context:,}", name)


def _too_many(name: str, count: int, what: str, most: int) -> InvalidRequest:
    return InvalidRequest(f"{name} has {count:,} {what}, but may have at most {most:,}", name)
