"""The routes that generate in the formats of OpenAI, Anthropic and vLLM: their bodies and answers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs

from frontends.access.caller import Caller
from frontends.answers.background import BackgroundResponses
from frontends.answers.conversations import Conversations
from frontends.answers.served_model import ServedModel
from frontends.anthropic.requests import CountRequest, MessagesRequest
from frontends.anthropic.response_builder import MessagesResponseBuilder
from frontends.openai.chat import BatchChatRequest, ChatRequest, ChatResponseBuilder
from frontends.openai.completions import CompletionRequest, TextResponseBuilder
from frontends.openai.fan_out import generate_choices
from frontends.openai.requests import GenerateRequest
from frontends.openai.response_builder import ResponseBuilder
from frontends.openai.sizes import check_answer
from frontends.openai.tokens import TokensRequest, TokensResponseBuilder
from frontends.openai.wanted import ParsedBody, renamed
from frontends.responses.requests import ParsedResponse, ResponsesRequest
from frontends.responses.response_builder import ResponsesResponseBuilder
from frontends.responses.stored import ResponseStore
from llmserve import GenerationRequest, Timeline


@attrs.frozen
class Route:
    """A route's body, and what makes the builder of its answer.

    Attributes:
        kind: the struct of the body, with a method `wanted` that returns a `ParsedBody`.
        builder: makes the builder of an answer by the served model's name or its adapter's.
    """

    kind: type[Any]
    builder: Callable[[ServedModel, ParsedBody, str], Awaitable[ResponseBuilder]]


async def _completions(served: ServedModel, wanted: ParsedBody, model: str) -> ResponseBuilder:
    echo = None
    if wanted.echo:
        detokenize = served.manager.detokenize
        prompts = (request.prompt for request in wanted.requests)
        echo = [prompt if isinstance(prompt, str) else await detokenize(prompt or ()) for prompt in prompts].__getitem__
    return TextResponseBuilder(wanted.requests[0].request_id, model, echo, generates=wanted.generates)


async def _chat(served: ServedModel, wanted: ParsedBody, model: str) -> ResponseBuilder:
    first = wanted.requests[0]
    return ChatResponseBuilder(first.request_id, model, first.tools, reasoning=wanted.reasoning, prefill=wanted.prefill)


async def _responses(served: ServedModel, wanted: ParsedBody, model: str) -> ResponseBuilder:
    return ResponsesResponseBuilder(wanted.requests[0], model)


async def _messages(served: ServedModel, wanted: ParsedBody, model: str) -> ResponseBuilder:
    return MessagesResponseBuilder(wanted.requests[0].request_id, model)


async def _tokens(served: ServedModel, wanted: ParsedBody, model: str) -> ResponseBuilder:
    return TokensResponseBuilder(wanted.requests[0].request_id, model, wanted.answer_id, text=wanted.text)


RESPONSES = "/v1/responses"
ROUTES = {
    "/v1/completions": Route(CompletionRequest, _completions),
    "/v1/chat/completions": Route(ChatRequest, _chat),
    "/v1/chat/completions/batch": Route(BatchChatRequest, _chat),
    RESPONSES: Route(ResponsesRequest, _responses),
    "/v1/messages": Route(MessagesRequest, _messages),
    "/inference/v1/generate": Route(TokensRequest, _tokens),
}


@attrs.frozen
class Extras:
    """What the operator has the server add to answers.

    Attributes:
        metrics: whether completions and chats have the times of their request.
        usage: whether every event of a stream of completions or chats has the usage so far, as if
            each client asked for it.
    """

    metrics: bool = False
    usage: bool = False


class Generation:
    """Parses the bodies of `ROUTES` and writes their whole answers; also /generate and the count of tokens.

    Args:
        served: the model that generates.
        responses: where responses are kept; None keeps none.
        extras: what answers have in addition.
    """

    def __init__(self, served: ServedModel, responses: ResponseStore | None = None, extras: Extras | None = None) -> None:
        self._served = served
        self._extras = extras or Extras()
        self._conversations = Conversations(served, responses)
        self._background = BackgroundResponses(served)
        self._readers = {path: served.reader(route.kind) for path, route in ROUTES.items() if path != RESPONSES}
        self._count = served.reader(CountRequest)
        self._generate = served.reader(GenerateRequest)

    async def close(self) -> None:
        """Cancel the responses that run in the background."""
        await self._background.close()

    async def parse(self, path: str, body: bytes, caller: Caller) -> tuple[ParsedBody, ResponseBuilder]:
        """Return a body's content and the builder of its answer. Raises LLMServeError."""
        served, manager = self._served, self._served.manager
        timelines: list[Timeline] | None = None
        if self._extras.metrics:
            timelines, caller = _observed(caller)
        if path == RESPONSES:
            wanted: ParsedBody = await self._conversations.parse(body, caller)
        else:
            wanted = await served.decode(body, self._readers[path], lambda sent: sent.wanted(caller, served.adapter(sent.model)))
        if self._extras.usage:
            wanted = attrs.evolve(wanted, usage=True, running_usage=True)
        if manager.engine_is_up:
            check_answer(wanted.requests, manager.info.max_model_len)
        builder = await ROUTES[path].builder(served, wanted, wanted.requests[0].adapter or served.name)
        builder.show(wanted)
        builder.timelines = timelines
        return wanted, builder

    async def whole(self, wanted: ParsedBody, builder: ResponseBuilder) -> AsyncIterator[bytes]:
        """Generate, and return the answer as JSON, in parts. Raises LLMServeError.

        In the background, the answer says that the response is queued; a stream's events come from
        the store.
        """
        if isinstance(wanted, ParsedResponse) and wanted.background:
            assert isinstance(builder, ResponsesResponseBuilder)
            return self._background.start(wanted, builder)
        with renamed(**wanted.names):
            completions = await generate_choices(self._served.manager, wanted.requests)
        return builder.whole(completions, wanted.per_prompt, self._served.turns)

    async def parse_own(self, body: bytes, caller: Caller) -> tuple[GenerationRequest, bool]:
        """Return the request in a body of /generate, and whether it asks for a stream. Raises LLMServeError."""
        return await self._served.decode(body, self._generate, lambda sent: (sent.generation_request(caller), sent.stream))

    async def count_tokens(self, body: bytes, caller: Caller) -> dict[str, int]:
        """Return the answer of /v1/messages/count_tokens. Raises LLMServeError."""
        served = self._served
        wanted = await served.decode(body, self._count, lambda sent: sent.wanted(caller, served.adapter(sent.model)))
        with renamed(**wanted.names):
            prompt = await served.manager.tokenize(wanted.requests[0])
        return {"input_tokens": len(prompt.token_ids)}


def _observed(caller: Caller) -> tuple[list[Timeline], Caller]:
    """Return a list that gets the timelines of the caller's sequences, and the caller that fills it."""
    timelines: list[Timeline] = []

    def note(timeline: Timeline) -> None:
        timelines.append(timeline)
        if caller.on_arrival is not None:
            caller.on_arrival(timeline)

    return timelines, attrs.evolve(caller, on_arrival=note)
