"""The routes that generate, in the formats of OpenAI, Anthropic and vLLM, and /generate."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web

from frontends.answers.background import follow
from frontends.answers.generation import ROUTES, Extras, Generation
from frontends.http.access_log import TASK, name_answer
from frontends.http.authentication import CALLER
from frontends.http.departure import Departure
from frontends.http.event_stream import EventStream
from frontends.http.idempotency_store import HEADER, MAX_ANSWER
from frontends.http.request_checks import Handler, take
from frontends.http.responses import json_response, whole_response
from frontends.http.routes.served_model import ServedModel
from frontends.net.flush import FlushScheduler
from frontends.openai import sse
from frontends.openai.fan_out import open_choices
from frontends.openai.response_builder import ResponseBuilder, failure
from frontends.openai.wanted import renamed
from frontends.responses.requests import ParsedResponse
from frontends.responses.stored import Name, ResponseStore
from llmserve import Delta, LLMServeError, TokenStream


class GenerationRoutes:
    """The handlers. An answer is one JSON body, or a stream of events.

    Args:
        served: the model that generates.
        scheduler: when a stream's tokens are written.
        keepalive: seconds of silence after which a stream gets its status and a comment; 0 = never.
        responses: where responses are kept.
        departure: tells when clients that follow a response have to leave.
        extras: what answers have in addition.
    """

    def __init__(
        self,
        served: ServedModel,
        scheduler: FlushScheduler,
        keepalive: float,
        responses: ResponseStore,
        departure: Departure,
        extras: Extras | None = None,
    ) -> None:
        self._served = served
        self._scheduler = scheduler
        self._keepalive = keepalive
        self._responses = responses
        self._departure = departure
        self._generation = Generation(served, responses, extras)

    def routes(self) -> dict[str, Handler]:
        own: dict[str, Handler] = {"POST /v1/messages/count_tokens": self.count, "POST /generate": self.generate}
        return {f"POST {path}": partial(self.answer, path) for path in ROUTES} | own

    async def close(self, app: web.Application) -> None:
        """Cancel the responses that run in the background, when the application ends."""
        await self._generation.close()

    async def answer(self, path: str, request: web.Request) -> web.StreamResponse:
        """Answer a request to one of `ROUTES`."""
        wanted, builder = await self._generation.parse(path, await take(request), request[CALLER])
        name_answer(request, builder.id, wanted.per_prompt)
        if isinstance(wanted, ParsedResponse) and wanted.background and wanted.stream:
            return await self._answer_background(request, wanted, builder)
        if not wanted.stream:
            response = await whole_response(await self._generation.whole(wanted, builder))
            if builder.task is not None:
                request[TASK] = builder.task
            return response
        async with (
            self._events(request, builder.failure) as events,
            renamed(**wanted.names),
            open_choices(self._served.manager, wanted.requests) as streams,
        ):
            running = streams if wanted.running_usage else None
            await events.begin()
            builder.begin(streams)
            await events.pour(streams, partial(_chunk, builder, set(range(len(streams))), running))
            last = builder.end([stream.usage for stream in streams], wanted.per_prompt, usage=wanted.usage)
            await events.end(last + await builder.complete())
        return events.response

    async def _answer_background(self, request: web.Request, wanted: ParsedResponse, builder: ResponseBuilder) -> web.StreamResponse:
        assert wanted.record is not None
        async for _ in await self._generation.whole(wanted, builder):
            # What is in the store is also the client's answer.
            pass
        assert builder.task is not None
        request[TASK] = builder.task
        return await self.follow(request, wanted.record.name)

    async def follow(self, request: web.Request, name: Name, number: int = 0) -> web.StreamResponse:
        """Answer with the events of a response in the background, from a `sequence_number` on."""
        with self._departure.follower():
            async with self._events(request, failure) as events:
                await events.begin()
                complete = False
                async for piece, is_complete in follow(self._responses, name, number, leaves=lambda: self._departure.dismissed):
                    await events.send(piece)
                    complete = is_complete
                await (events.end() if complete else events.fail())
        return events.response

    async def count(self, request: web.Request) -> web.StreamResponse:
        return json_response(await self._generation.count_tokens(await take(request), request[CALLER]))

    async def generate(self, request: web.Request) -> web.StreamResponse:
        manager = self._served.manager
        wanted, streams = await self._generation.parse_own(await take(request), request[CALLER])
        name_answer(request, wanted.request_id)
        if not streams:
            return json_response(await manager.generate(wanted))
        async with self._events(request, failure) as events, manager.stream(wanted) as stream:
            await events.begin()
            await events.pour([stream], lambda _, delta: sse.event(delta))
            await events.end(sse.event(stream.usage) + sse.DONE)
        return events.response

    @asynccontextmanager
    async def _events(self, request: web.Request, last: Callable[[LLMServeError], bytes]) -> AsyncIterator[EventStream]:
        """Open the response's events; once they have begun, an error becomes the `last` events.

        This context encloses the token stream's, so that the stream's errors pass through here
        last.
        """
        events = EventStream(request, self._scheduler, self._keepalive)
        if HEADER in request.headers and request.method == "POST":
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
