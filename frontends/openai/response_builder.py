"""Writes answers in OpenAI's format, complete or in chunks: what completions and chat share.

`bodies.py` has the types of the answers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from frontends.net.turns import WorkQueue
from frontends.openai import sse
from frontends.openai.bodies import Answer, Metrics, PromptTokensDetails, RequestMetrics, UsageBody
from frontends.openai.errors import describe
from frontends.openai.logprobs import by_id, in_pieces, write_prompt_logprobs
from frontends.openai.wanted import ParsedBody
from llmserve import Completion, Delta, LLMServeError, Timeline, TokenLogprob, TokenStream, Usage

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
        # The timelines of the sequences, on a server that adds them to answers.
        self.timelines: Sequence[Timeline] | None = None
        # What still makes the answer after the client got its first state.
        self.task: asyncio.Task[None] | None = None
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
            self.chunk = self.chunk_with_ids  # type: ignore[method-assign]  # chosen once, not for each chunk

    async def whole(self, completions: Sequence[Completion], per_prompt: int, turns: WorkQueue) -> AsyncIterator[bytes]:
        """Yield the answer as JSON, in parts.

        There may be a quarter of a million logprobs. They are encoded in pieces, with pauses for
        the event loop, and for one choice at a time, when the caller has taken the parts before.
        """
        choices = [self.choice(index, completion) for index, completion in enumerate(completions)]
        usage = add_usage([completion.usage for completion in completions], per_prompt)
        answer = self._whole(completions, choices, usage)
        fills = self._leave_holes(answer, completions)
        begin, *parts = msgspec.json.encode(answer).split(_HOLE)
        yield begin
        for fill, part in zip(fills, parts, strict=True):
            yield await fill(turns)
            yield part

    def _whole(self, completions: Sequence[Completion], choices: Sequence[Any], usage: UsageBody) -> Any:
        """Return the complete answer, without logprobs."""
        return Answer(self.id, self.kind, self.created, self.model, choices, usage, metrics=self._metrics())

    def _metrics(self) -> Metrics:
        if self.timelines is None:
            return msgspec.UNSET
        return RequestMetrics.of(self.timelines[0]) if len(self.timelines) == 1 else None

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

        def make(text: str, completion: int, total: int) -> Any:
            answer = self._answer(self.chunk_choice(index, Delta(text, ())))
            answer.usage = UsageBody(usage.prompt_tokens, completion, total, PromptTokensDetails(0))
            return answer

        return sse.TextEvent(make, numbers=2)

    def end(self, usages: Sequence[Usage], per_prompt: int, *, usage: bool) -> bytes:
        """Return the last events of a stream, with the usage if requested."""
        return (self.usage(usages, per_prompt) if usage else b"") + sse.DONE

    async def complete(self) -> bytes:
        """Do what must be done before the client gets the last events of a stream; return events after them."""
        return b""

    def failure(self, error: LLMServeError) -> bytes:
        """Return the last events of a stream that fails."""
        return failure(error)

    def usage(self, usages: Sequence[Usage], per_prompt: int) -> bytes:
        answer = self._answer()
        answer.usage, answer.metrics = add_usage(usages, per_prompt), self._metrics()
        return sse.event(answer)

    def _named(self, entries: Sequence[TokenLogprob]) -> Sequence[TokenLogprob]:
        return [by_id(entry) for entry in entries] if self.by_id else entries

    def _answer(self, *choices: Any) -> Any:
        """Return a chunk."""
        return Answer(self.id, self.chunk_kind, self.created, self.model, choices)

    def choice(self, index: int, completion: Completion) -> Any:
        """Return a choice without its logprobs."""
        raise NotImplementedError

    def logprobs(self, index: int, completion: Completion) -> Iterator[Any]:
        """Yield the logprobs of a choice in at least one piece; a piece is a struct of lists."""
        raise NotImplementedError

    def chunk_choice(self, index: int, delta: Delta) -> Any:
        raise NotImplementedError


def failure(error: LLMServeError) -> bytes:
    return sse.event(describe(error)[1]) + sse.DONE


def prompt_alone(usage: Usage) -> Usage:
    return msgspec.structs.replace(usage, completion_tokens=0)
