"""The OpenAI wire: what answers look like, whole and in chunks."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from frontends import sse
from frontends.openai_logprobs import PIECE, ChatLogprobs, TextLogprobs, by_id, chat_logprobs, pieces, text_logprobs
from frontends.openai_tools import CallBody, CalledFunction
from frontends.turns import Turns
from llmserve import Completion, Delta, TokenLogprob, ToolCall, Tools, Usage

# Where the logprobs of a choice will stand. JSON has this byte in no other place, because it is escaped in strings.
_HOLE = b"\0"


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None


class ChatMessageBody(msgspec.Struct):
    """`content` is null where there are calls and no words; `reasoning` is vLLM's name for what a model thought before."""

    role: str
    content: str | None
    refusal: None = None
    tool_calls: list[CallBody] | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessageBody
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallBody] | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None


class Answer(msgspec.Struct):
    """A whole answer, or a chunk of one; `usage` is left out of chunks unless it was asked for."""

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: Sequence[TextChoice | ChatChoice | ChatChunkChoice]
    usage: UsageBody | msgspec.UnsetType = msgspec.UNSET


def add_usage(usages: Sequence[Usage], per_prompt: int) -> UsageBody:
    """For a request of several choices: each prompt counts once, however many answers it was given."""
    prompts = sum(usage.prompt_tokens for usage in usages[::per_prompt])
    generated = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages[::per_prompt])
    return UsageBody(prompts, generated, prompts + generated, PromptTokensDetails(cached))


class Answerer:
    """Writes the answers to one request: the shape that completions and chat share."""

    kind: Literal["text_completion", "chat.completion"]
    chunk_kind: Literal["text_completion", "chat.completion.chunk"]
    prefix: str

    def __init__(self, request_id: str, model: str) -> None:
        self.id = f"{self.prefix}-{request_id}"
        self.model = model
        self.created = int(time.time())
        # Whether logprobs name tokens by their ids.
        self.by_id = False
        self._frames: dict[int, sse.TextEvent] = {}

    async def whole(self, completions: Sequence[Completion], per_prompt: int, turns: Turns) -> AsyncIterator[bytes]:
        """The answer as JSON, in parts. Logprobs, of which there may be a quarter of a million, are encoded in pieces, between which the
        event loop does everything else, and those of one choice at a time, when the parts before them have been taken."""
        choices = [self.choice(index, completion) for index, completion in enumerate(completions)]
        detailed = [index for index, completion in enumerate(completions) if completion.logprobs is not None]
        for index in detailed:
            choices[index].logprobs = msgspec.Raw(_HOLE)
        usage = add_usage([completion.usage for completion in completions], per_prompt)
        begin, *parts = msgspec.json.encode(Answer(self.id, self.kind, self.created, self.model, choices, usage)).split(_HOLE)
        yield begin
        for index, part in zip(detailed, parts, strict=True):
            yield await self._logprobs(index, completions[index], turns)
            yield part

    async def _logprobs(self, index: int, completion: Completion, turns: Turns) -> bytes:
        """The lists of all pieces' objects, joined name by name."""
        pieces = self.logprobs(index, completion)
        lists: dict[str, list[bytes]] = {}

        def write() -> bool:
            piece = next(pieces, None)
            for name in () if piece is None else piece.__struct_fields__:
                lists.setdefault(name, []).append(msgspec.json.encode(getattr(piece, name))[1:-1])
            return piece is not None

        # What fits one piece is not worth a turn of its own.
        small = len(completion.logprobs or ()) + len(completion.prompt_logprobs or ()) <= PIECE
        while write() if small else await turns.run(write):
            pass
        return b"{" + b",".join(b'"%b":[%b]' % (name.encode(), b",".join(found)) for name, found in lists.items()) + b"}"

    def first(self, index: int) -> bytes:
        """What a choice's stream begins with."""
        return b""

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        """One delta as an event: by template where it is text and nothing else; nothing while there is nothing to show. `usage` is this
        choice's so far, if wanted."""
        # While a character or a stop string is incomplete there are tokens without text.
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

    def _event(self, choice: Any, usage: Usage | None) -> bytes:
        answer = self._answer(choice)
        if usage is not None:
            answer.usage = add_usage([usage], 1)
        return sse.event(answer)

    def _frame(self, index: int, usage: Usage | None) -> sse.TextEvent:
        """Around the text of a choice's chunks, and around what its running usage counts."""
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
        """Without its logprobs."""
        raise NotImplementedError

    def logprobs(self, index: int, completion: Completion) -> Iterator[Any]:
        """Those of a choice in pieces, structs of lists; at least one."""
        raise NotImplementedError

    def chunk_choice(self, index: int, delta: Delta) -> Any:
        raise NotImplementedError


class TextAnswerer(Answerer):
    """/v1/completions. `echo` gives the prompt's text for a choice, to stand before its answer; None for no echo. The answer is the prompt
    alone where `generates` is False, and what the engine generates to score it is left out."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, request_id: str, model: str, echo: Callable[[int], str] | None = None, *, generates: bool = True) -> None:
        super().__init__(request_id, model)
        self._generates = generates
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def whole(self, completions: Sequence[Completion], per_prompt: int, turns: Turns) -> AsyncIterator[bytes]:
        if not self._generates:
            completions = [
                msgspec.structs.replace(
                    one, text="", logprobs=_none_of(one.logprobs), finish_reason="length", usage=_prompt_alone(one.usage)
                )
                for one in completions
            ]
        return super().whole(completions, per_prompt, turns)

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        if not self._generates:
            delta = msgspec.structs.replace(delta, text="", logprobs=_none_of(delta.logprobs), finish_reason="length")
            usage = None if usage is None else _prompt_alone(usage)
        return super().chunk(index, delta, usage)

    def usage(self, usages: Sequence[Usage], per_prompt: int) -> bytes:
        return super().usage(usages if self._generates else [_prompt_alone(one) for one in usages], per_prompt)

    def first(self, index: int) -> bytes:
        if self._echo is None:
            return b""
        text = self._echo(index)
        self._offsets[index] = len(text)
        return sse.event(self._answer(TextChoice(index, text, None, None)))

    def choice(self, index: int, completion: Completion) -> TextChoice:
        echo = self._echo(index) if self._echo else ""
        return TextChoice(index, echo + completion.text, None, completion.finish_reason, completion.stop_reason)

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
            # The prompt's own come with the first delta, and begin where the echo began.
            logprobs = text_logprobs(self._named([*(delta.prompt_logprobs or ()), *delta.logprobs]), 0 if delta.prompt_logprobs else start)
        return TextChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason)


class ChatAnswerer(Answerer):
    """/v1/chat/completions. `tools` are what the model could call; `reasoning` is whether the client wants what the model thought."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, request_id: str, model: str, tools: Tools | None = None, *, reasoning: bool = True) -> None:
        super().__init__(request_id, model)
        self._reasoning = reasoning
        self._tools = tools
        self._called: set[int] = set()

    def first(self, index: int) -> bytes:
        return sse.event(self._answer(ChatChunkChoice(index, ChatDelta("assistant", ""), None, None)))

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
        return ChatChoice(index, message, None, self._reason(index, completion.finish_reason), completion.stop_reason)

    def logprobs(self, index: int, completion: Completion) -> Iterator[ChatLogprobs]:
        return (chat_logprobs(self._named(piece)) for piece in pieces(completion.logprobs or ()))

    def chunk(self, index: int, delta: Delta, usage: Usage | None = None) -> bytes:
        found = delta.message
        if found is None:
            return super().chunk(index, delta, usage)
        reasoning = found.reasoning if self._reasoning else ""
        if not (found.content or reasoning or found.tool_calls or delta.finish_reason or delta.logprobs):
            return b""
        calls = [
            CallBody(index=call.index, id=call.id, type="function" if call.id else None, function=_called(call))
            for call in found.tool_calls
        ]
        if calls:
            self._called.add(index)
        chunk = ChatDelta(content=found.content or None, reasoning=reasoning or None, tool_calls=calls or None)
        logprobs = None if delta.logprobs is None else chat_logprobs(self._named(delta.logprobs))
        return self._event(ChatChunkChoice(index, chunk, logprobs, self._reason(index, delta.finish_reason), delta.stop_reason), usage)

    def chunk_choice(self, index: int, delta: Delta) -> ChatChunkChoice:
        logprobs = None if delta.logprobs is None else chat_logprobs(self._named(delta.logprobs))
        return ChatChunkChoice(index, ChatDelta(content=delta.text), logprobs, delta.finish_reason, delta.stop_reason)

    def _reason(self, index: int, reason: str | None) -> str | None:
        """As OpenAI has it: calls are a reason of their own, but for the one that was named."""
        free = index in self._called and self._tools is not None and self._tools.choice != "named"
        return "tool_calls" if reason == "stop" and free else reason


def _prompt_alone(usage: Usage) -> Usage:
    return msgspec.structs.replace(usage, completion_tokens=0)


def _none_of(logprobs: Sequence[TokenLogprob] | None) -> tuple[TokenLogprob, ...] | None:
    return None if logprobs is None else ()


def _called(call: ToolCall) -> CalledFunction:
    return CalledFunction(call.name, call.arguments)
