"""Makes the bytes of an answer and their times from a behaviour. Knows no sockets."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import msgspec

from benchmarks.truth.behaviours import Behaviour

MODEL = "scripted"
# Time between the two segments of an event, so that they are not read together.
SPLIT_SECONDS = 0.004


@attrs.frozen
class Step:
    """A segment: `data` is sent `wait` seconds after the one before, and completes `tokens`."""

    wait: float
    data: bytes
    tokens: int = 0


def steps(behaviour: Behaviour, total: int) -> Iterator[Step]:
    """Yield the segments of an answer with `total` tokens."""
    written = list(_answer(behaviour, total))
    if behaviour.split:
        return itertools.chain.from_iterable(_halves(step, behaviour) for step in written)
    if behaviour.together > 1:
        return _joined(written, behaviour.together)
    return iter(written)


def error_event(behaviour: Behaviour, body: str) -> bytes:
    """Return an error as an event, and the end that servers send after it."""
    return _event(behaviour, body.encode()) + _event(behaviour, b"[DONE]")


def _answer(behaviour: Behaviour, total: int) -> Iterator[Step]:
    if behaviour.role:
        yield Step(0.0, _chunk(behaviour, {"role": "assistant", "content": ""}, 0))
    sent = 0
    sizes = itertools.cycle(behaviour.chunks)
    while sent < total:
        size = min(next(sizes), total - sent)
        wait = behaviour.gap * size if sent else behaviour.first
        if sent <= total // 2 < sent + size:
            wait += behaviour.stall
        part = wait / (behaviour.empties + 1)
        for _ in range(behaviour.empties):
            yield Step(part, _chunk(behaviour, _delta(behaviour, sent, 0), sent))
        delta = _delta(behaviour, sent, size)
        sent += size
        last = sent == total and behaviour.finish == "text"
        yield Step(part, _chunk(behaviour, delta, sent, last=last), size)
    yield from _end(behaviour, total)


def _end(behaviour: Behaviour, total: int) -> Iterator[Step]:
    wait = 0.0 if total else behaviour.first
    if behaviour.finish == "own" or (behaviour.finish == "text" and not total):
        yield Step(wait, _chunk(behaviour, _delta(behaviour, total, 0), total, last=True))
    if behaviour.usage in ("own", "all"):
        data = msgspec.json.encode({**_head(behaviour), "choices": [], "usage": _usage(behaviour, total)})
        yield Step(0.0, _event(behaviour, data))
    if behaviour.done:
        yield Step(0.0, _event(behaviour, b"[DONE]"))


def _delta(behaviour: Behaviour, position: int, size: int) -> dict[str, Any]:
    """Return the tokens from a position on, as the fields of a choice."""
    text = behaviour.word * size
    if not behaviour.chat:
        return {"text": text}
    if behaviour.tool:
        named = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": text}}
        call = named if position == 0 else {"function": {"arguments": text}}
        return {"tool_calls": [{"index": 0, **call}]} if size else {}
    return {"reasoning_content" if position < behaviour.reasoning else "content": text}


def _chunk(behaviour: Behaviour, delta: dict[str, Any], sent: int, *, last: bool = False) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": delta} if behaviour.chat else {"index": 0, **delta}
    choice["finish_reason"] = "length" if last else None
    body = {**_head(behaviour), "choices": [choice]}
    if behaviour.usage == "all" or (behaviour.usage == "finish" and last):
        body["usage"] = _usage(behaviour, sent)
    return _event(behaviour, msgspec.json.encode(body))


def _head(behaviour: Behaviour) -> dict[str, Any]:
    kind = "chat.completion.chunk" if behaviour.chat else "text_completion"
    return {"id": "answer", "object": kind, "created": 1, "model": MODEL}


def _usage(behaviour: Behaviour, sent: int) -> dict[str, int]:
    counted = sent if behaviour.counted is None else behaviour.counted
    return {"prompt_tokens": 8, "completion_tokens": counted, "total_tokens": 8 + counted}


def _event(behaviour: Behaviour, data: bytes) -> bytes:
    end = behaviour.newline
    comment = b": keep-alive" + end + end if behaviour.comments else b""
    return comment + b"data:" + b" " * behaviour.space + data + end + end


def _halves(step: Step, behaviour: Behaviour) -> Iterator[Step]:
    """Cut a segment in two, within its text's last character if that has several bytes."""
    character = behaviour.word[-1].encode()
    place = step.data.rfind(character) if len(character) > 1 else -1
    cut = place + 1 if place >= 0 else len(step.data) // 2
    yield Step(step.wait, step.data[:cut])
    yield Step(SPLIT_SECONDS, step.data[cut:], step.tokens)


def _joined(written: Sequence[Step], together: int) -> Iterator[Step]:
    for start in range(0, len(written), together):
        group = written[start : start + together]
        yield Step(sum(step.wait for step in group), b"".join(step.data for step in group), sum(step.tokens for step in group))
