"""Writes answers in OpenAI's format, complete or in chunks. `bodies.py` has their types."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from frontends.net.turns import WorkQueue
from frontends.openai import sse
from frontends.openai.bodies import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatMessageBody,
    PromptTokensDetails,
    TextChoice,
    UsageBody,
)
from frontends.openai.logprobs import (
    ChatLogprobs,
    TextLogprobs,
    by_id,
    chat_logprobs,
    in_pieces,
    pieces,
    text_logprobs,
    write_prompt_logprobs,
)
from frontends.openai.tools import CallBody, CalledFunction
from frontends.openai.wanted import ParsedBody
from llmserve import Completion, Delta, TokenLogprob, TokenStream, ToolCall, Tools, Usage

# A placeholder for the logprobs of a choice. JSON escapes this byte in strings, so it is unique.
_HOLE = b"\0"
Fill = Callable[[WorkQueue], Awaitable[bytes]]


def add_usage(usages: Sequence[Usage], per_prompt: int) -> UsageBody:
    """Add the usages of several choices. Each prompt counts once, regardless of its choices."""
    prompts = sum(usage.prompt_tokens for usage in usages[::per_prompt])
    generated = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages[::per_prompt])
    return UsageBody(prompts, generated, prompts + generated, PromptTokensDetails(cached))


class ResponseBuilder:
    """Writes the answer to one request; the base of completions and chat."""

    kind: Literal["text_completion", "chat.completion"]
    chunk_kind: Literal["text_completion", "chat.completion.chunk"]
    prefix: str

    def __init__(self, request_id: str, model: str) -> None:
        self.id = f"{self.prefix}-{request_id}"
        self.model = model
        self.created = int(time.time())
        # Attributes of `ParsedBody`.
        self.by_id = self.token_ids = self.prompt_logprobs = False
        # Prompt token ids that a stream has not sent yet, by choice.
        self._prompts: dict[int, Sequence[int]] = {}
        self._frames: dict[int, sse.TextEvent] = {}

    def show(self, wanted: ParsedBody) -> None:
        """Set what the client requests in addition to the text."""
        self.by_id, self.token_ids, self.prompt_logprobs = wanted.by_id, wanted.token_ids, wanted.prompt_logprobs

    def begin(self, streams: Sequence[TokenStream]) -> None:
        """Prepare for the deltas of these streams."""
        if self.token_ids:
            self._prompts = {index: stream.prompt_token_ids or () for index, stream in enumerate(streams)}
            # Chosen once, so that streams without token ids have no cost per delta.
            self.chunk = self.chunk_with_ids  # type: ignore[method-assign]

    async def whole(self, completions: Sequence[Completion], per_prompt: int, turns: WorkQueue) -> AsyncIterator[bytes]:
        """Yield the answer as JSON, in parts.

        There may be a quarter of a million logprobs. They are encoded in pieces, with pauses for
        the event loop, and for one choice at a time, when the caller has taken the parts before.
        """
        choices = [self.choice(index, completion) for index, completion in enumerate(completions)]
        usage = add_usage([completion.usage for completion in completions], per_prompt)
        answer = Answer(self.id, self.kind, self.created, self.model, choices, usage)
        fills = self._leave_holes(answer, completions)
        begin, *parts = msgspec.json.encode(answer).split(_HOLE)
        yield begin
        for fill, part in zip(fills, parts, strict=True):
            yield await fill(turns)
            yield part

    def _leave_holes(self, answer: Any, completions: Sequence[Completion]) -> list[Fill]:
        """Put placeholders for the logprobs; return the functions that fill them, in JSON order."""
        fills: list[Fill] = []
        for index, (choice, completion) in enumerate(zip(answer.choices, completions, strict=True)):
            if completion.logprobs is not None:
                choice.logprobs = msgspec.Raw(_HOLE)
                fills.append(partial(self._logprobs, index, completion))
            fills += self._leave_prompt_hole(choice, completion)
        return fills

    def _leave_prompt_hole(self, place: Any, completion: Completion) -> list[Fill]:
        """Put a placeholder for the prompt's logprobs into `place`, if it has that field.

        `place` is a choice of completions or the answer of chat.
        """
        if not self.prompt_logprobs or not hasattr(place, "prompt_logprobs"):
            return []
        place.prompt_logprobs = msgspec.Raw(_HOLE)
        return [partial(write_prompt_logprobs, completion.prompt_logprobs or ())]

    async def _logprobs(self, index: int, completion: Completion, turns: WorkQueue) -> bytes:
        """Return the JSON of a choice's logprobs: the lists of all pieces, joined by name."""
        pieces = self.logprobs(index, completion)
        lists: dict[str, list[bytes]] = {}

        def write() -> bool:
            piece = next(pieces, None)
            for name in () if piece is None else piece.__struct_fields__:
                lists.setdefault(name, []).append(msgspec.json.encode(getattr(piece, name))[1:-1])
            return piece is not None

        await in_pieces(write, len(completion.logprobs or ()) + len(completion.prompt_logprobs or ()), turns)
        return b"{" + b",".join(b'"%b":[%b]' % (name.encode(), b",".join(found)) for name, found in lists.items()) + b"}"

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        """Return the first event of a choice's stream."""
        return b""

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        """Return a delta as an event; empty while there is nothing to show.

        A delta with only text uses a template. `usage` is the choice's usage so far, if requested.
        """
        # Tokens have no text while a character or a stop string is incomplete.
        if not (delta.text or delta.finish_reason or delta.logprobs):
            return b""
        if delta.finish_reason is None and delta.logprobs is None and not (usage is not None and usage.cached_tokens):
            frame = self._frames.get(index)
            if frame is None:
                frame = self._frames[index] = self._frame(index, usage)
            if usage is None:
                return frame(delta.text)
            return frame(delta.text, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens)
        return self._event(self.chunk_choice(index, delta), usage)

    def chunk_with_ids(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        """Return a delta as an event with token ids, including tokens that have no text yet."""
        choice = self.chunk_choice(index, delta)
        choice.token_ids = delta.token_ids
        return self._event(choice, usage)

    def _event(self, choice: Any, usage: Usage | None, prompt: Sequence[int] | None = None) -> bytes:
        answer = self._answer(choice)
        if usage is not None:
            answer.usage = add_usage([usage], 1)
        if prompt is not None:
            answer.prompt_token_ids = prompt
        return sse.event(answer)

    def _frame(self, index: int, usage: Usage | None) -> sse.TextEvent:
        """Return the template of a choice's chunks, with its usage so far if requested."""
        if usage is None:
            return sse.TextEvent(lambda text: self._answer(self.chunk_choice(index, Delta(text, ()))))

        def make(text: str, completion: int, total: int) -> Answer:
            answer = self._answer(self.chunk_choice(index, Delta(text, ())))
            answer.usage = UsageBody(usage.prompt_tokens, completion, total, PromptTokensDetails(0))
            return answer

        return sse.TextEvent(make, numbers=2)

    def usage(self, usages: Sequence[Usage], per_prompt: int) -> bytes:
        answer = self._answer()
        answer.usage = add_usage(usages, per_prompt)
        return sse.event(answer)

    def _named(self, entries: Sequence[TokenLogprob]) -> Sequence[TokenLogprob]:
        return [by_id(entry) for entry in entries] if self.by_id else entries

    def _answer(self, *choices: Any) -> Answer:
        return Answer(self.id, self.chunk_kind, self.created, self.model, choices)

    def choice(self, index: int, completion: Completion) -> Any:
        """Return a choice without its logprobs."""
        raise NotImplementedError

    def logprobs(self, index: int, completion: Completion) -> Iterator[Any]:
        """Yield the logprobs of a choice in at least one piece; a piece is a struct of lists."""
        raise NotImplementedError

    def chunk_choice(self, index: int, delta: Delta) -> Any:
        raise NotImplementedError


class TextResponseBuilder(ResponseBuilder):
    """Writes the answers of /v1/completions.

    Args:
        echo: returns the prompt's text, with which a choice begins; None for no echo.
        generates: False where the answer is only the prompt. The token that the engine generates to
            score the prompt is then omitted.
    """

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, request_id: str, model: str, echo: Callable[[int], str] | None = None, *, generates: bool = True) -> None:
        super().__init__(request_id, model)
        self._generates = generates
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def whole(self, completions: Sequence[Completion], per_prompt: int, turns: WorkQueue) -> AsyncIterator[bytes]:
        if not self._generates:
            completions = [
                msgspec.structs.replace(
                    one, text="", token_ids=(), logprobs=_none_of(one.logprobs), finish_reason="length", usage=_prompt_alone(one.usage)
                )
                for one in completions
            ]
        return super().whole(completions, per_prompt, turns)

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        if not self._generates:
            delta, usage = _echo_alone(delta), None if usage is None else _prompt_alone(usage)
        return super().chunk(index, delta, usage)

    def chunk_with_ids(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        if not self._generates:
            delta, usage = _echo_alone(delta), None if usage is None else _prompt_alone(usage)
        return super().chunk_with_ids(index, delta, usage)

    def usage(self, usages: Sequence[Usage], per_prompt: int) -> bytes:
        return super().usage(usages if self._generates else [_prompt_alone(one) for one in usages], per_prompt)

    def begin(self, streams: Sequence[TokenStream]) -> None:
        if self._echo is not None:
            self._offsets = {index: len(self._echo(index)) for index in range(len(streams))}
        super().begin(streams)

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        prompt = self._prompts.pop(index, msgspec.UNSET)
        if self._echo is None and prompt is msgspec.UNSET:
            return b""
        text = self._echo(index) if self._echo else ""
        choice = TextChoice(index, text, None, None, token_ids=() if self.token_ids else msgspec.UNSET, prompt_token_ids=prompt)
        return self._event(choice, None if usage is None else _prompt_alone(usage))

    def choice(self, index: int, completion: Completion) -> TextChoice:
        text = (self._echo(index) if self._echo else "") + completion.text
        choice = TextChoice(index, text, None, completion.finish_reason, completion.stop_reason, None, None, None)
        if self.token_ids:
            choice.token_ids, choice.prompt_token_ids = completion.token_ids, completion.prompt_token_ids
        return choice

    def logprobs(self, index: int, completion: Completion) -> Iterator[TextLogprobs]:
        prompt = (completion.prompt_logprobs or ()) if self._echo else ()
        start = len(self._echo(index)) if self._echo and not prompt else 0
        for piece in pieces(prompt, completion.logprobs or ()):
            yield text_logprobs(self._named(piece), start)
            start += sum(len(entry.token) for entry in piece)

    def chunk_choice(self, index: int, delta: Delta) -> TextChoice:
        logprobs = None
        if delta.logprobs is not None:
            start = self._offsets.get(index, 0)
            self._offsets[index] = start + sum(len(entry.token) for entry in delta.logprobs)
            # The prompt's logprobs come with the first delta, and their offsets start with the
            # echo.
            logprobs = text_logprobs(self._named([*(delta.prompt_logprobs or ()), *delta.logprobs]), 0 if delta.prompt_logprobs else start)
        return TextChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason)


class ChatResponseBuilder(ResponseBuilder):
    """Writes the answers of /v1/chat/completions.

    Args:
        tools: the tools that the model may call.
        reasoning: whether the answer includes the model's reasoning.
    """

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, request_id: str, model: str, tools: Tools | None = None, *, reasoning: bool = True) -> None:
        super().__init__(request_id, model)
        self._reasoning = reasoning
        self._tools = tools
        self._called: set[int] = set()

    def _leave_holes(self, answer: Any, completions: Sequence[Completion]) -> list[Fill]:
        answer.prompt_token_ids = completions[0].prompt_token_ids
        answer.prompt_logprobs = None
        return super()._leave_holes(answer, completions) + self._leave_prompt_hole(answer, completions[0])

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        # All choices share one prompt. The first choice has its token ids, for the first event
        # only.
        prompt = self._prompts.get(0)
        self._prompts.clear()
        choice = ChatChunkChoice(index, ChatDelta("assistant", ""), None, None)
        return self._event(choice, None if usage is None else _prompt_alone(usage), prompt)

    def choice(self, index: int, completion: Completion) -> ChatChoice:
        found = completion.message
        if found is None:
            message = ChatMessageBody("assistant", completion.text)
        else:
            message = ChatMessageBody("assistant", found.content or (None if found.tool_calls else ""))
            if found.tool_calls:
                message.tool_calls = [CallBody(id=call.id, type="function", function=_called(call)) for call in found.tool_calls]
                self._called.add(index)
            if found.reasoning and self._reasoning:
                message.reasoning = found.reasoning
        token_ids = completion.token_ids if self.token_ids else None
        return ChatChoice(index, message, None, self._reason(index, completion.finish_reason), completion.stop_reason, token_ids)

    def logprobs(self, index: int, completion: Completion) -> Iterator[ChatLogprobs]:
        return (chat_logprobs(self._named(piece)) for piece in pieces(completion.logprobs or ()))

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        if delta.message is None:
            return super().chunk(index, delta, usage)
        choice = self.chunk_choice(index, delta)
        shows = choice.delta != ChatDelta() or delta.finish_reason or delta.logprobs
        return self._event(choice, usage) if shows else b""

    def chunk_choice(self, index: int, delta: Delta) -> ChatChunkChoice:
        logprobs = None if delta.logprobs is None else chat_logprobs(self._named(delta.logprobs))
        found = delta.message
        if found is None:
            return ChatChunkChoice(index, ChatDelta(content=delta.text), logprobs, delta.finish_reason, delta.stop_reason)
        calls = [
            CallBody(index=call.index, id=call.id, type="function" if call.id else None, function=_called(call))
            for call in found.tool_calls
        ]
        if calls:
            self._called.add(index)
        reasoning = found.reasoning if self._reasoning else ""
        chunk = ChatDelta(content=found.content or None, reasoning=reasoning or None, tool_calls=calls or None)
        return ChatChunkChoice(index, chunk, logprobs, self._reason(index, delta.finish_reason), delta.stop_reason)

    def _reason(self, index: int, reason: str | None) -> str | None:
        """Return the finish reason: as in OpenAI's API, `tool_calls` unless the tool was named."""
        free = index in self._called and self._tools is not None and self._tools.choice != "named"
        return "tool_calls" if reason == "stop" and free else reason


def _prompt_alone(usage: Usage) -> Usage:
    return msgspec.structs.replace(usage, completion_tokens=0)


def _echo_alone(delta: Delta) -> Delta:
    return msgspec.structs.replace(delta, text="", token_ids=(), logprobs=_none_of(delta.logprobs), finish_reason="length")


def _none_of(logprobs: Sequence[TokenLogprob] | None) -> tuple[TokenLogprob, ...] | None:
    return None if logprobs is None else ()


def _called(call: ToolCall) -> CalledFunction:
    return CalledFunction(call.name, call.arguments)
