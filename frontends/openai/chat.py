"""The body of /v1/chat/completions, and the choices of its answers."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import attrs

from frontends.access.caller import Caller
from frontends.openai.bodies import Answer, ChatChoice, ChatChunkChoice, ChatDelta, ChatMessageBody, UsageBody
from frontends.openai.logprobs import ChatLogprobs, chat_logprobs, pieces
from frontends.openai.messages import ChatMessage, final_message, plain_messages
from frontends.openai.requests import Common
from frontends.openai.response_builder import Fill, ResponseBuilder, prompt_alone
from frontends.openai.sizes import MAX_PROMPTS
from frontends.openai.tools import CallBody, CalledFunction, ToolBody, ToolChoice, tools_of
from frontends.openai.unsupported import CHAT, Unsupported
from frontends.openai.wanted import renamed
from llmserve import Completion, Delta, GenerationRequest, InvalidRequest, ToolCall, Tools, Usage


class ChatRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions."""

    unsupported: ClassVar[Unsupported] = CHAT

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    include_reasoning: bool | None = None
    echo: bool | None = None

    def names(self) -> dict[str, str]:
        by_new_name = {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
        return super().names() | by_new_name | {"logprobs": "top_logprobs", "template_kwargs": "chat_template_kwargs"}

    def generation_requests(self, caller: Caller, adapter: str | None = None) -> list[GenerationRequest]:
        first, *others = self._requests_for([self.messages], caller, adapter)
        # The answer has the prompt's token ids and logprobs once, so the engine computes them only
        # for the first choice.
        return [first, *map(_without_prompt, others)]

    def _requests_for(self, chats: Sequence[Sequence[ChatMessage]], caller: Caller, adapter: str | None) -> list[GenerationRequest]:
        conversations = [plain_messages(chat) for chat in chats]
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs requires logprobs to be true", "top_logprobs")
        with renamed(**self.names()):
            most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
            logprobs = (self.top_logprobs or 0) if self.logprobs else None
            sampling = self.sampling(max_tokens=most, logprobs=logprobs, prompt_logprobs=self.prompt_logprobs)
        tools = tools_of(self.tools, self.tool_choice, self.parallel_tool_calls)
        with renamed(**self.names()):
            common = {"tools": tools, "template_kwargs": self.template_kwargs()}
            return self.requests([{"messages": messages, **common} for messages in conversations], sampling, caller, adapter)

    def extras(self) -> dict[str, Any]:
        repeats = self.echo and self.messages[-1].role == "assistant"
        return {"reasoning": self.include_reasoning is not False, "prefill": self.messages[-1].words() if repeats else ""}

    def template_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the chat template, as in vLLM. Raises InvalidRequest."""
        arguments: dict[str, Any] = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            # Templates with a single switch for reasoning use this name.
            arguments = {"enable_thinking": self.reasoning_effort != "none"} | arguments | {"reasoning_effort": self.reasoning_effort}
        return arguments | final_message(self.add_generation_prompt, self.continue_final_message)


class BatchChatRequest(ChatRequest, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions/batch: several conversations, answered as one."""

    messages: list[list[ChatMessage]]  # type: ignore[assignment]  # msgspec replaces the field

    def generation_requests(self, caller: Caller, adapter: str | None = None) -> list[GenerationRequest]:
        for name in ("stream", "tools", "echo", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value is not False:
                raise InvalidRequest(f"{name} is not supported for a batch of conversations", name)
        if not 1 <= len(self.messages) <= MAX_PROMPTS:
            raise InvalidRequest(f"messages must hold 1 to {MAX_PROMPTS} conversations", "messages")
        # The answer has no place for the prompts' token ids.
        return list(map(_without_prompt, self._requests_for(self.messages, caller, adapter)))

    def extras(self) -> dict[str, Any]:
        return {"reasoning": self.include_reasoning is not False}


class ChatResponseBuilder(ResponseBuilder):
    """Writes the answers of /v1/chat/completions.

    Args:
        tools: the tools that the model may call.
        reasoning: whether the answer includes the model's reasoning.
        prefill: the text that the answer begins with, before the model's own.
    """

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, request_id: str, model: str, tools: Tools | None = None, *, reasoning: bool = True, prefill: str = "") -> None:
        super().__init__(request_id, model)
        self._reasoning = reasoning
        self._prefill = prefill
        self._tools = tools
        self._called: set[int] = set()

    def _leave_holes(self, answer: Any, completions: Sequence[Completion]) -> list[Fill]:
        return super()._leave_holes(answer, completions) + self._leave_prompt_hole(answer, completions[0])

    def _whole(self, completions: Sequence[Completion], choices: Sequence[Any], usage: UsageBody) -> Answer:
        answer: Answer = super()._whole(completions, choices, usage)
        answer.prompt_token_ids, answer.prompt_logprobs = completions[0].prompt_token_ids, None
        return answer

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        # All choices share one prompt. The first choice has its token ids, for the first event
        # only.
        prompt = self._prompts.get(0)
        self._prompts.clear()
        choice = ChatChunkChoice(index, ChatDelta("assistant", self._prefill), None, None)
        return self._event(choice, None if usage is None else prompt_alone(usage), prompt)

    def choice(self, index: int, completion: Completion) -> ChatChoice:
        found = completion.message
        if found is None:
            message = ChatMessageBody("assistant", self._prefill + completion.text)
        else:
            message = ChatMessageBody("assistant", self._prefill + found.content or (None if found.tool_calls else ""))
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


def _without_prompt(request: GenerationRequest) -> GenerationRequest:
    if request.sampling.prompt_logprobs is None and not request.return_prompt_ids:
        return request
    return attrs.evolve(request, sampling=attrs.evolve(request.sampling, prompt_logprobs=None), return_prompt_ids=False)


def _called(call: ToolCall) -> CalledFunction:
    return CalledFunction(call.name, call.arguments)
