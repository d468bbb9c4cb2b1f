"""Responses that are made in the background, for clients that retrieve or follow them later."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from frontends.answers.served_model import ServedModel
from frontends.openai.wanted import renamed
from frontends.responses.events import Place, begin_of_end, is_last, lost, stopping
from frontends.responses.requests import ParsedResponse
from frontends.responses.response_builder import ResponsesResponseBuilder
from frontends.responses.stored import COMPLETE, Name, Operation, Record, ResponseStore
from llmserve import InvalidRequest, LLMServeError, TokenStream

logger = logging.getLogger(__name__)

# Seconds for which a client's answer waits for the request's admission. A refusal in that time is the
# client's answer; what happens later is the status of the response.
REFUSAL_SECONDS = 0.5
# Seconds between two additions to the events of a response, and at least between two looks at them.
# The store may be in another process, and would get a message for each token otherwise.
EVENT_SECONDS = 0.05
# Maximum seconds between two looks at events. A server that ends waits longer for its last followers
# (`frontends.http.departure`).
MAX_LOOK_SECONDS = 0.5
# Maximum seconds that the end of a server waits for the store to have the responses that are complete.
KEEP_SECONDS = 1.0


class BackgroundResponses:
    """The responses of this process. Each is a task, which the store cancels with the response."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._tasks: set[asyncio.Task[None]] = set()
        # For each task of a response, its stream once that is admitted.
        self._opened: dict[asyncio.Task[None], asyncio.Future[TokenStream]] = {}

    async def start(self, wanted: ParsedResponse, builder: ResponsesResponseBuilder) -> AsyncIterator[bytes]:
        """Start a response and keep it as queued; yield its JSON.

        Raises LLMServeError, and keeps nothing, if the request is refused at once or there is no
        room for the response.
        """
        assert wanted.record is not None
        queued: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        builder.task = self._task(self._run(wanted, wanted.record, builder, queued))
        yield await queued

    async def close(self) -> None:
        """Cancel the responses that run.

        Those that have all their tokens get the time to be kept: clients follow them at other workers.
        """
        complete = [task for task, opened in self._opened.items() if opened.done() and opened.result().ended]
        if complete:
            await asyncio.wait(complete, timeout=KEEP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, wanted: ParsedResponse, record: Record, builder: ResponsesResponseBuilder, queued: asyncio.Future[bytes]) -> None:
        task, kept = asyncio.current_task(), asyncio.Event()
        assert task is not None
        opened: asyncio.Future[TokenStream] = asyncio.get_running_loop().create_future()
        self._opened[task] = opened
        generating = self._task(self._generate(wanted, record, builder, opened, kept))
        either: list[asyncio.Future[Any]] = [generating, opened]
        try:
            await asyncio.wait(either, timeout=REFUSAL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if generating.done():
                await generating
            if not await self._keep(record, builder, queued, stream=wanted.stream):
                return
            kept.set()
            await generating
        except LLMServeError as error:
            await self._failed(record, builder, queued, error)
        except Exception:
            logger.exception("the background response %s failed", builder.id)
            await self._failed(record, builder, queued, LLMServeError("an internal error: see the server's log"))
        finally:
            del self._opened[task]
            queued.cancel()
            if not generating.done():
                generating.cancel()
                await asyncio.wait([generating])

    async def _keep(self, record: Record, builder: ResponsesResponseBuilder, queued: asyncio.Future[bytes], *, stream: bool) -> bool:
        """Keep the response and answer the client; return whether both succeeded. Raises InvalidRequest without room."""
        body, task = builder.state("queued"), asyncio.current_task()
        assert task is not None
        if queued.cancelled():
            return False
        if not await record.add("queued", body, task.cancel, builder.queued() if stream else b""):
            words = "the server has no room for the response (--stored-response-bytes), and background needs it"
            raise InvalidRequest(f"background: {words}", "background")
        if queued.cancelled():
            # The client left before it could learn the response's id.
            await record.delete()
            return False
        queued.set_result(body)
        return True

    async def _failed(self, record: Record, builder: ResponsesResponseBuilder, queued: asyncio.Future[bytes], error: LLMServeError) -> None:
        """Report an error to the client, which waits for its answer or has it already."""
        if queued.done():
            await record.replace("failed", builder.state("failed", error))
        else:
            queued.set_exception(error)

    async def _generate(
        self,
        wanted: ParsedResponse,
        record: Record,
        builder: ResponsesResponseBuilder,
        opened: asyncio.Future[TokenStream],
        kept: asyncio.Event,
    ) -> None:
        """Generate the answer. `opened` gets the stream when the request is admitted; only a response that is `kept` has other states."""
        with renamed(**wanted.names):
            async with self._served.manager.stream(wanted.requests[0]) as stream:
                opened.set_result(stream)
                await kept.wait()
                await record.replace("in_progress", builder.state("in_progress"), builder.in_progress() if wanted.stream else b"")
                if wanted.stream:
                    await self._record(stream, record, builder)
                    return
                completion = await stream.collect()
        async for _ in builder.whole([completion], 1, self._served.turns):
            # The builder has put the response into the store.
            pass

    async def _record(self, stream: TokenStream, record: Record, builder: ResponsesResponseBuilder) -> None:
        """Keep a stream's events. Tokens that come between two additions share an event."""
        builder.begin([stream])
        async for delta in stream:
            if events := builder.chunk(0, delta):
                await record.append(events)
            if delta.finish_reason is None:
                await asyncio.sleep(EVENT_SECONDS)
        last = builder.end([stream.usage], 1, usage=False)
        await record.replace(*builder.result(), last)


async def follow(
    store: ResponseStore, name: Name, number: int = 0, *, leaves: Callable[[], bool] = lambda: False
) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the events of a response from a `sequence_number` on, in pieces, as they come, until its last one.

    Each piece comes with whether the response is complete; the last piece's answer is final.
    Once `leaves` returns True, an `error` event is the last one of a response that runs.
    """
    place, pause, begin = Place(number), EVENT_SECONDS, b""
    while found := await store.ask(Operation("events", name, place=place)):
        if not (found.body or found.runs):
            return
        # Not before the first event, because an error's number would be that event's own.
        if found.runs and leaves() and place.number and not place.offset:
            yield stopping(place.number), False
            return
        if found.body:
            begin = begin_of_end(found.body, place, begin)
            place, pause = place.after(found.body), EVENT_SECONDS
            yield found.body, found.status in COMPLETE
            # The client may have been slow, and the response may not be kept any more.
            if not place.offset and is_last(begin):
                return
        else:
            # Followers look, because a store that they wait in would wake all of them in one turn of its event loop.
            # Looks become rarer during a silence, because thousands of them may reach one process.
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_LOOK_SECONDS)
    # Clients discard an event that has no end, and could not tell an error behind it from its rest.
    yield b"" if place.offset else lost(place.number), False
