"""Responses that are made in the background, for clients that retrieve them later."""

import asyncio
import logging
from collections.abc import AsyncIterator

from frontends.answers.served_model import ServedModel
from frontends.openai.wanted import renamed
from frontends.responses.requests import ParsedResponse
from frontends.responses.response_builder import ResponsesResponseBuilder
from frontends.responses.stored import Record
from llmserve import InvalidRequest, LLMServeError

logger = logging.getLogger(__name__)


class BackgroundResponses:
    """The responses of this process. Each is a task, which the store cancels with the response."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, wanted: ParsedResponse, builder: ResponsesResponseBuilder) -> AsyncIterator[bytes]:
        """Keep a response as queued and start it; yield its JSON. Raises InvalidRequest if there is no room for it."""
        assert wanted.record is not None
        queued: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        task = builder.task = asyncio.create_task(self._run(wanted, wanted.record, builder, queued))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        body = await queued
        if not body:
            words = "the server has no room for the response (--stored-response-bytes), and background needs it"
            raise InvalidRequest(f"background: {words}", "background")
        yield body

    async def close(self) -> None:
        """Cancel the responses that run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, wanted: ParsedResponse, record: Record, builder: ResponsesResponseBuilder, queued: asyncio.Future[bytes]) -> None:
        body, task = builder.state("queued"), asyncio.current_task()
        assert task is not None
        kept = True
        try:
            kept = await record.add("queued", body, task.cancel)
        finally:
            if not queued.done():
                queued.set_result(body if kept else b"")
        if queued.cancelled():
            # The client left before it could learn the response's id.
            await record.delete()
            return
        if not kept:
            return
        try:
            await self._generate(wanted, record, builder)
        except LLMServeError as error:
            await record.replace("failed", builder.state("failed", error))
        except Exception:
            logger.exception("the background response %s failed", builder.id)
            await record.replace("failed", builder.state("failed", LLMServeError("an internal error: see the server's log")))

    async def _generate(self, wanted: ParsedResponse, record: Record, builder: ResponsesResponseBuilder) -> None:
        with renamed(**wanted.names):
            async with self._served.manager.stream(wanted.requests[0]) as stream:
                await record.replace("in_progress", builder.state("in_progress"))
                completion = await stream.collect()
        async for _ in builder.whole([completion], 1, self._served.turns):
            # The builder has put the response into the store.
            pass
