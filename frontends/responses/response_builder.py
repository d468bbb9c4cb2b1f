"""Writes answers in the format of OpenAI's Responses API, complete or as named events."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec

from frontends.net.turns import WorkQueue
from frontends.openai import sse
from frontends.openai.errors import describe
from frontends.openai.logprobs import response_logprobs, write_list
from frontends.openai.response_builder import ResponseBuilder
from frontends.openai.wanted import ParsedBody
from frontends.responses.requests import ParsedResponse
from frontends.responses.stored import PREFIX, Record, joined
from llmserve import Completion, Delta, GenerationRequest, LLMServeError, TokenStream, ToolCall, Usage

# The types of the part of an item, of its deltas, and of the event after them.
PARTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
    "function_call": (None, "response.function_call_arguments"),
}
NONE = msgspec.Raw(b"[]")


class OpenItem:
    """An item of a stream that is not complete."""

    def __init__(self, kind: str, name: str, call: ToolCall | None = None) -> None:
        self.kind = kind
        self.id = name
        self.call = call
        self.pieces: list[str] = []
        # JSON lists of the tokens' logprobs, if the client asked for them.
        self.logprobs: list[bytes] = []

    def body(self, status: str) -> dict[str, Any]:
        """Return the item; while it is in progress, without its content."""
        text, done = "".join(self.pieces), status != "in_progress"
        head = {"id": self.id, "type": self.kind, "status": status}
        if self.call is not None:
            return head | {"call_id": self.call.id or self.id, "name": self.call.name or "", "arguments": text if done else ""}
        content = [self.part(text)] if done else []
        return head | ({"role": "assistant", "content": content} if self.kind == "message" else {"summary": [], "content": content})

    def part(self, text: str) -> dict[str, Any]:
        kind, _ = PARTS[self.kind]
        return {"type": kind, "text": text} | ({"annotations": [], "logprobs": self.all_logprobs()} if self.kind == "message" else {})

    def all_logprobs(self) -> msgspec.Raw:
        return msgspec.Raw(joined(*self.logprobs))


class ResponsesResponseBuilder(ResponseBuilder):
    """Writes the answers of /v1/responses. In a stream at most one item is open.

    Args:
        request: what the model generates for; the answer repeats its tools and sampling.
    """

    prefix = PREFIX

    def __init__(self, request: GenerationRequest, model: str) -> None:
        super().__init__(request.request_id, model)
        self._request = request
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._open: OpenItem | None = None
        self._reason: str | None = None
        # Logprobs of a stream's tokens that no event has had, as JSON lists. A token may have no text
        # of its own.
        self._unsent: list[bytes] = []
        # Attributes of `ParsedResponse`.
        self._record: Record | None = None
        self._repeated: dict[str, Any] = {"previous_response_id": None, "metadata": {}, "background": False}
        self._last: dict[str, Any] = {}

    def show(self, wanted: ParsedBody) -> None:
        super().show(wanted)
        assert isinstance(wanted, ParsedResponse)
        self._record = wanted.record
        self._repeated = {"previous_response_id": wanted.previous, "metadata": wanted.metadata, "background": wanted.background}

    async def whole(self, completions: Sequence[Completion], per_prompt: int, turns: WorkQueue) -> AsyncIterator[bytes]:
        (completion,) = completions
        self._reason = completion.finish_reason
        message = completion.message
        texts = [("reasoning", message.reasoning if message else ""), ("message", message.content if message else completion.text)]
        for kind, text in texts:
            if text:
                item = OpenItem(kind, self._name(kind))
                if kind == "message" and completion.logprobs:
                    item.logprobs.append(await write_list(completion.logprobs, response_logprobs, turns))
                self._keep(item, text)
        for call in message.tool_calls if message else ():
            self._keep(OpenItem("function_call", self._name("function_call"), call), call.arguments)
        response = self._response(self._final, completion.usage)
        body = sse.encode(response)
        yield body if await self._put(body) else sse.encode(response | {"store": False})

    def _keep(self, item: OpenItem, text: str) -> None:
        item.pieces.append(text)
        self._items.append(item.body(self._final))

    @property
    def _final(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    # A stream

    def begin(self, streams: Sequence[TokenStream]) -> None:
        (self._stream,) = streams

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        self._reason = delta.finish_reason
        events = list(self._content(delta))
        return self._start() + b"".join(events) if events else b""

    def end(self, usages: Sequence[Usage], per_prompt: int, *, usage: bool) -> bytes:
        begin = self._start() + self._close()
        self._last = self._response(self._final, usages[0])
        return begin

    async def complete(self) -> bytes:
        if not await self._put(sse.encode(self._last)):
            self._last["store"] = False
        return self._named_event(f"response.{self._final}", response=self._last)

    def failure(self, error: LLMServeError) -> bytes:
        return self._named_event("response.failed", response=self._failed(error))

    async def _put(self, body: bytes) -> bool:
        """Put the complete response into its store, if it has one; return False if that has no room for it."""
        if self._record is None:
            return True
        if not self._record.background:
            return await self._record.add(self._final, body)
        await self._record.replace(self._final, body)
        return True

    # A response in the background

    def queued(self) -> bytes:
        """Return the first events of a stream, before the response is admitted."""
        body = self._response("queued", None)
        return self._named_event("response.created", response=body) + self._named_event("response.queued", response=body)

    def in_progress(self) -> bytes:
        """Return the event after those of `queued`."""
        return self._named_event("response.in_progress", response=self._response("in_progress", None))

    def result(self) -> tuple[str, bytes]:
        """Return the status and the JSON of a response whose stream has had its `end`."""
        return self._final, sse.encode(self._last)

    def state(self, status: str, error: LLMServeError | None = None) -> bytes:
        """Return the response before it is complete, or failed by an error."""
        return sse.encode(self._response(status, None) if error is None else self._failed(error))

    def _failed(self, error: LLMServeError) -> dict[str, Any]:
        found = describe(error)[1].error
        return self._response("failed", None) | {"error": {"code": found.code or found.type, "message": found.message}}

    # Events

    def _start(self) -> bytes:
        """Return the stream's first events, once: with the first token, whose time clients measure."""
        if self._number:
            return b""
        body = self._response("in_progress", None)
        return self._named_event("response.created", response=body) + self._named_event("response.in_progress", response=body)

    def _content(self, delta: Delta) -> Iterator[bytes]:
        message = delta.message
        if delta.logprobs:
            # At once, because a reasoning's tokens would take 100 ms together.
            self._unsent.append(response_logprobs(delta.logprobs))
        yield from self._piece("reasoning", "" if message is None else message.reasoning)
        yield from self._piece("message", delta.text if message is None else message.content)
        for call in () if message is None else message.tool_calls:
            if call.name is not None:
                yield self._begin_item("function_call", call)
            if call.arguments and self._open is not None and self._open.call is not None:
                yield self._delta(self._open, call.arguments)

    def _piece(self, kind: str, text: str) -> Iterator[bytes]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield self._begin_item(kind)
        assert self._open is not None
        yield self._delta(self._open, text)

    def _begin_item(self, kind: str, call: ToolCall | None = None) -> bytes:
        begin = self._start() + self._close()
        item = self._open = OpenItem(kind, self._name(kind), call)
        begin += self._named_event("response.output_item.added", output_index=len(self._items), item=item.body("in_progress"))
        return begin if call else begin + self._named_event("response.content_part.added", part=item.part(""), **self._place(item))

    def _delta(self, item: OpenItem, text: str) -> bytes:
        item.pieces.append(text)
        more: dict[str, Any] = {"logprobs": self._take_logprobs(item)} if item.kind == "message" else {}
        return self._named_event(f"{PARTS[item.kind][1]}.delta", delta=text, **more, **self._place(item))

    def _take_logprobs(self, item: OpenItem) -> msgspec.Raw:
        """Return the logprobs of the tokens since the last event of a message, and add them to it."""
        if not self._unsent:
            return NONE
        found = joined(*self._unsent)
        self._unsent.clear()
        item.logprobs.append(found)
        return msgspec.Raw(found)

    def _close(self) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        text, place, kind = "".join(item.pieces), self._place(item), f"{PARTS[item.kind][1]}.done"
        if item.call is not None:
            done = self._named_event(kind, arguments=text, name=item.call.name, **place)
        else:
            more: dict[str, Any] = {}
            if item.kind == "message":
                self._take_logprobs(item)
                more["logprobs"] = item.all_logprobs()
            done = self._named_event(kind, text=text, **more, **place) + self._named_event(
                "response.content_part.done", part=item.part(text), **place
            )
        body = item.body(self._final)
        done += self._named_event("response.output_item.done", output_index=len(self._items), item=body)
        self._items.append(body)
        return done

    def _place(self, item: OpenItem) -> dict[str, Any]:
        place = {"item_id": item.id, "output_index": len(self._items)}
        return place if item.call is not None else {**place, "content_index": 0}

    def _named_event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return b"event: %b\n" % kind.encode() + sse.event({"type": kind, "sequence_number": number, **fields})

    def _name(self, kind: str) -> str:
        return f"{kind}-{len(self._items)}-{self.id}"

    def _response(self, status: str, usage: Usage | None) -> dict[str, Any]:
        tools, sampling = self._request.tools, self._request.sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": list(self._items),
            "tools": [{"type": "function", **function} for function in (tools.functions if tools else ())],
            "tool_choice": _choice(self._request),
            "parallel_tool_calls": tools is None or tools.parallel,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_output_tokens": sampling.max_tokens,
            "top_logprobs": sampling.logprobs or 0,
            "store": self._record is not None,
            "usage": None if usage is None else _usage(usage),
            **self._repeated,
        }


def _choice(request: GenerationRequest) -> Any:
    tools = request.tools
    if tools is None:
        return "auto"
    return {"type": "function", "name": tools.name} if tools.choice == "named" else tools.choice


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the usage. The engine does not count the tokens of the reasoning."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
