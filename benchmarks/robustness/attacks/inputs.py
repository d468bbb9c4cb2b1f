"""What the attackers send, as bytes. Pure.

Each body has the maximum size that the server accepts, because its cost grows with its size.
"""

import json
from typing import Any

from frontends.http.request_checks import MAX_BODY
from frontends.rawsocket.frames import LENGTH, MAX_FRAME, VERSION, Hello, encode

ORDINARY = b'{"prompt":"hi","max_tokens":8}'
# The smallest metadata with which 20 open streams held half a gigabyte.
METADATA_BYTES = 97 * 2**20 // 100
# Bytes that an unfinished request withholds.
KEPT_BACK = 100

# Each passes a test of its first few steps, and costs more with every token (0.3 s to 20 s per
# token).
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "grammar": {"grammar": 'root ::= x x x x x x x x\nx ::= x x | x x x | "" | [a-z ] | "the" | x "a" x'},
    "regex": {"regex": "((a|b|[a-z ])*|([a-z ]*))*"},
    "schema": {
        "json": {
            "$defs": {
                f"d{n}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/d{(n + k) % 20}"}} for k in range(20)]} for n in range(20)
            },
            "$ref": "#/$defs/d0",
        }
    },
    "short grammar": {"grammar": "root ::= root root | [ a-z]"},
}


def constrained(name: str) -> bytes:
    return json.dumps({"prompt": "aaaa", "max_tokens": 1500, "structured_outputs": CONSTRAINTS[name]}).encode()


def filled(before: bytes, item: bytes, after: bytes, size: int) -> bytes:
    """Return a body of at most `size` bytes, with as many comma-separated items as fit."""
    count = (size - len(before) - len(after) + 1) // (len(item) + 1)
    return before + b",".join([item] * count) + after


def ordinary(size: int) -> bytes:
    """Return an ordinary request of `size` bytes, padded with white space."""
    return ORDINARY + b" " * (size - len(ORDINARY))


def tools(size: int = MAX_BODY) -> bytes:
    """Return a function whose parameters are empty objects."""
    before = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":8,'
    before += b'"tools":[{"type":"function","function":{"name":"f","parameters":{"a":['
    return filled(before, b"{}", b"]}}}]}", size)


def schema(size: int = MAX_BODY) -> bytes:
    """Return a JSON schema of empty objects."""
    return filled(b'{"prompt":"hi","max_tokens":8,"structured_outputs":{"json":{"a":[', b"{}", b"]}}}", size)


def metadata(size: int = MAX_BODY, more: bytes = b'"max_tokens":8') -> bytes:
    """Return a field of empty lists that the server ignores; `more` are further fields."""
    return filled(b'{"prompt":"hi",' + more + b',"metadata":{"a":[', b"[]", b"]}}", size)


def held(size: int = METADATA_BYTES) -> bytes:
    """Return the same for a stream that stays open as long as a small model's context lasts."""
    return metadata(size, b'"max_tokens":2000,"ignore_eos":true,"stream":true')


def ids(size: int = MAX_BODY) -> bytes:
    return filled(b'{"tokens":[', b"1", b"]}", size)


def many_logprobs(n: int = 128, max_tokens: int = 2000) -> bytes:
    """Return a short request for an answer of `n * max_tokens` tokens with 20 logprobs each."""
    return json.dumps({"prompt": "hi", "n": n, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 20}).encode()


def chat_logprobs(n: int = 16, max_tokens: int = 2000) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "n": n, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    return json.dumps(body).encode()


def post(path: str, body: bytes, size: int | None = None) -> bytes:
    """Return an HTTP request with `Connection: close`; `size` replaces its Content-Length."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % (len(body) if size is None else size) + body


def partial_frame() -> bytes:
    """Return a Hello and the largest frame, without the frame's end."""
    return encode(Hello(VERSION)) + MAX_FRAME.to_bytes(LENGTH, "big") + bytes(MAX_FRAME - KEPT_BACK)


def partial_body() -> bytes:
    return post("/v1/completions", ordinary(MAX_BODY - 1), MAX_BODY)
