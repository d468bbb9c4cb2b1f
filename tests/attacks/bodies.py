"""Large bodies that are cheap to send and expensive to decode, for every field of every route."""

from typing import Any

import msgspec

from frontends.anthropic.requests import MessagesRequest
from frontends.openai.chat import BatchChatRequest, ChatRequest
from frontends.openai.completions import CompletionRequest
from frontends.openai.requests import GenerateRequest
from frontends.openai.tokenization import DetokenizeRequest, TokenizeRequest
from frontends.openai.tokens import TokensRequest
from frontends.responses.requests import ResponsesRequest

KINDS: dict[str, Any] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/chat/completions/batch": BatchChatRequest,
    "/generate": GenerateRequest,
    "/v1/messages": MessagesRequest,
    "/v1/responses": ResponsesRequest,
    "/inference/v1/generate": TokensRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
# Fields that a body needs in addition to the filled one.
NEEDED: dict[Any, dict[str, Any]] = {
    CompletionRequest: {"prompt": "hi"},
    ChatRequest: {"messages": [{"role": "user", "content": "hi"}]},
    BatchChatRequest: {"messages": [[{"role": "user", "content": "hi"}]]},
    GenerateRequest: {"prompt": "hi"},
    MessagesRequest: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    ResponsesRequest: {"input": "hi"},
    TokensRequest: {"token_ids": [1], "sampling_params": {}},
    TokenizeRequest: {"prompt": "hi"},
    DetokenizeRequest: {"tokens": [1]},
}
SMALL_THINGS = (b"[]", b"{}", b'""', b"1", b'{"role":"user"}')
# The structure around a list, for fields that take lists only inside of another value.
AROUND = {
    "tools": (b'[{"type":"function","function":{"name":"a","parameters":{"a":', b"}}}]"),
    "response_format": (b'{"type":"json_schema","json_schema":{"name":"a","schema":{"a":', b"}}}"),
    "structured_outputs": (b'{"json":{"a":', b"}}"),
    "messages": (b'[{"role":"assistant","tool_calls":', b"}]"),
}


def full(size, thing):
    """Return a JSON list of small values, of about `size` bytes."""
    return b"[" + b",".join([thing] * (size // (len(thing) + 1))) + b"]"


def with_field(kind, name, value):
    rest = msgspec.json.encode({key: other for key, other in NEEDED[kind].items() if key != name})[1:-1]
    return b'{"%b":%b%b}' % (name.encode(), value, b"," + rest if rest else b"")


def large(path, size, fields=None):
    """Yield (field, body) for each of a route's fields, filled with each small value."""
    kind = KINDS[path]
    for field in fields or kind.__struct_fields__:
        if field in kind.__struct_fields__:
            for value in values(field, size):
                yield field, with_field(kind, field, value)


def values(field, size):
    before, after = AROUND.get(field, (b"", b""))
    for thing in SMALL_THINGS:
        yield full(size, thing)
        if before:
            yield before + full(size, thing) + after
    if field == "messages":
        yield before + full(size, b'{"function":{}}') + after
        yield b'[{"role":"user","content":' + full(size, b'{"type":"text","text":""}') + b"}]"
    if field == "logit_bias":
        yield b"{" + b",".join(b'"%d":1' % number for number in range(size // 10)) + b"}"
    if field == "prompt":
        yield b'["a",' + full(size, b"[]")[1:]
