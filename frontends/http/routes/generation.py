"""The routes that generate, in the formats of OpenAI, Anthropic and vLLM, and /generate."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from aiohttp import web

from frontends.anthropic.requests import CountRequest, MessagesRequest
from frontends.anthropic.response_builder import MessagesResponseBuilder
from frontends.http.access_log import name_answer
from frontends.http.authentication import CALLER
from frontends.http.event_stream import EventStream
from frontends.http.idempotency_store import HEADER, MAX_ANSWER
from frontends.http.request_checks import Handler
from frontends.http.responses import json_response, whole_response
from frontends.http.routes.served_model import ServedModel
from frontends.net.flush import FlushScheduler
from frontends.openai import sse
from frontends.openai.chat import BatchChatRequest, ChatRequest, ChatResponseBuilder
from frontends.openai.completions import CompletionRequest, TextResponseBuilder
from frontends.openai.decoding import BodyReader
from frontends.openai.fan_out import generate_choices, open_choices
from frontends.openai.requests import GenerateRequest
from frontends.openai.response_builder import ResponseBuilder, failure
from frontends.openai.sizes import check_answer
from frontends.openai.tokens import TokensRequest, TokensResponseBuilder
from frontends.openai.wanted import ParsedBody, renamed
from frontends.responses.requests import ResponsesRequest
from frontends.responses.response_builder import ResponsesResponseBuilder
from llmserve import Delta, GenerationRequest, LLMServeError, TokenStream

Asks = TypeVar("Asks", CompletionRequest, ChatRequest, BatchChatRequest, MessagesRequest, ResponsesRequest, TokensRequest)


class GenerationRoutes:
    """The handlers. An answer is one JSON body, or a stream of events.

    Args:
        served: the model that generates.
        scheduler: when a stream's tokens are written.
        keepalive: seconds of silence after which a stream gets its status and a comment; 0 = never.
    """

    def __init__(self, served: ServedModel, scheduler: FlushScheduler, keepalive: float) -> None:
        self._served = served
        self._scheduler = scheduler
        self._keepalive = keepalive
        self._completion = served.reader(CompletionRequest)
        self._chat = served.reader(ChatRequest)
        self._batch = served.reader(BatchChatRequest)
        self._responses = served.reader(ResponsesRequest)
        self._messages = served.reader(MessagesRequest)
        self._count = served.reader(CountRequest)
        self._tokens = served.reader(TokensRequest)
        self._generate = served.reader(GenerateRequest)

    def routes(self) -> dict[str, Handler]:
        return {
            "POST /v1/completions": self.completions,
            "POST /v1/chat/completions": self.chat,
            "POST /v1/chat/completions/batch": self.batch,
            "POST /v1/responses": self.responses,
            "POST /v1/messages": self.messages,
            "POST /v1/messages/count_tokens": self.count,
            "POST /inference/v1/generate": self.tokens,
            "POST /generate": self.generate,
        }

    async def completions(self, request: web.Request) -> web.StreamResponse:
        wanted = await self._wanted(request, self._completion)
        first = wanted.requests[0]
        echoes = await self._echoes(wanted.requests) if wanted.echo else None
        echo = echoes.__getitem__ if echoes else None
        builder = TextResponseBuilder(first.request_id, first.adapter or self._served.name, echo, generates=wanted.generates)
        return await self._answer(request, wanted, builder)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._chat_answer(request, await self._wanted(request, self._chat))

    async def batch(self, request: web.Request) -> web.StreamResponse:
        return await self._chat_answer(request, await self._wanted(request, self._batch))

    async def _chat_answer(self, request: web.Request, wanted: ParsedBody) -> web.StreamResponse:
        first = wanted.requests[0]
        model, prefill = first.adapter or self._served.name, wanted.prefill
        builder = ChatResponseBuilder(first.request_id, model, first.tools, reasoning=wanted.reasoning, prefill=prefill)
        return await self._answer(request, wanted, builder)

    async def responses(self, request: web.Request) -> web.StreamResponse:
        wanted = await self._wanted(request, self._responses)
        first = wanted.requests[0]
        return await self._answer(request, wanted, ResponsesResponseBuilder(first, first.adapter or self._served.name))

    async def messages(self, request: web.Request) -> web.StreamResponse:
        wanted = await self._wanted(request, self._messages)
        first = wanted.requests[0]
        return await self._answer(request, wanted, MessagesResponseBuilder(first.request_id, first.adapter or self._served.name))

    async def count(self, request: web.Request) -> web.StreamResponse:
        def make(body: CountRequest) -> GenerationRequest:
            self._served.adapter(body.model)
            return body.generation_request()

        prompt = await self._served.manager.tokenize(await self._served.read(request, self._count, make))
        return json_response({"input_tokens": len(prompt.token_ids)})

    async def tokens(self, request: web.Request) -> web.StreamResponse:
        wanted = await self._wanted(request, self._tokens)
        first = wanted.requests[0]
        builder = TokensResponseBuilder(first.request_id, first.adapter or self._served.name, wanted.answer_id, text=wanted.text)
        return await self._answer(request, wanted, builder)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        caller, manager = request[CALLER], self._served.manager
        wanted, streams = await self._served.read(request, self._generate, lambda body: (body.generation_request(caller), body.stream))
        name_answer(request, wanted.request_id)
        if not streams:
            return json_response(await manager.generate(wanted))
        async with self._events(request, failure) as events, manager.stream(wanted) as stream:
            await events.begin()
            await events.pour([stream], lambda _, delta: sse.event(delta))
            await events.end(sse.event(stream.usage) + sse.DONE)
        return events.response

    async def _wanted(self, request: web.Request, reader: BodyReader[Asks]) -> ParsedBody:
        caller, manager = request[CALLER], self._served.manager
        wanted = await self._served.read(request, reader, lambda body: body.wanted(caller, self._served.adapter(body.model)))
        if manager.engine_is_up:
            check_answer(wanted.requests, manager.info.max_model_len)
        return wanted

    async def _echoes(self, requests: list[GenerationRequest]) -> list[str]:
        detokenize = self._served.manager.detokenize
        return [request.prompt if isinstance(request.prompt, str) else await detokenize(request.prompt or ()) for request in requests]

    async def _answer(self, request: web.Request, wanted: ParsedBody, builder: ResponseBuilder) -> web.StreamResponse:
        requests, n = wanted.requests, wanted.per_prompt
        name_answer(request, builder.id, n)
        builder.show(wanted)
        if not wanted.stream:
            with renamed(**wanted.names):
                completions = await generate_choices(self._served.manager, requests)
            return await whole_response(builder.whole(completions, n, self._served.turns))
        async with (
            self._events(request, builder.failure) as events,
            renamed(**wanted.names),
            open_choices(self._served.manager, requests) as streams,
        ):
            running = streams if wanted.running_usage else None
            await events.begin()
            builder.begin(streams)
            await events.pour(streams, partial(_chunk, builder, set(range(len(streams))), running))
            await events.end(builder.end([stream.usage for stream in streams], n, usage=wanted.usage))
        return events.response

    @asynccontextmanager
    async def _events(self, request: web.Request, last: Callable[[LLMServeError], bytes]) -> AsyncIterator[EventStream]:
        """Open the response's events; once they have begun, an error becomes the `last` events.

        This context encloses the token stream's, so that the stream's errors pass through here
        last.
        """
        events = EventStream(request, self._scheduler, self._keepalive)
        if HEADER in request.headers:
            events.record(MAX_ANSWER)
        try:
            yield events
        except LLMServeError as error:
            if not events.begun:
                raise
            await events.fail(last(error))
        finally:
            events.close()


def _chunk(builder: ResponseBuilder, unopened: set[int], running: list[TokenStream] | None, index: int, delta: Delta) -> bytes:
    chunk = builder.chunk(index, delta, running[index].usage if running else None)
    if not (unopened and chunk and index in unopened):
        return chunk
    # Sent with the first token and not earlier: clients measure the time to the first event.
    unopened.discard(index)
    return builder.first(index, running[index].usage if running else None) + chunk
