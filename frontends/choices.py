"""Several sequences as one answer: a request with n, or with a list of prompts."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from llmserve import Completion, Delta, EngineManager, GenerationRequest, TokenStream


class Choices:
    """An async iterator of (index, delta) over all choices, as they come."""

    def __init__(self, streams: Sequence[TokenStream], deltas: AsyncIterator[tuple[int, Delta]]) -> None:
        self.streams = streams
        self._deltas = deltas

    def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        return self._deltas

    async def collect(self) -> list[Completion]:
        """The whole answers, in order of index."""
        if len(self.streams) == 1:
            return [await self.streams[0].collect()]
        whole: dict[int, Delta] = {}
        async for index, delta in self:
            whole[index] = whole[index] + delta if index in whole else delta
        return [
            Completion(
                stream.request_id,
                whole[index].text,
                whole[index].token_ids,
                whole[index].finish_reason or "",
                stream.usage,
                whole[index].stop_reason,
                whole[index].logprobs,
                whole[index].prompt_logprobs,
            )
            for index, stream in enumerate(self.streams)
        ]


@asynccontextmanager
async def open_choices(manager: EngineManager, requests: Sequence[GenerationRequest]) -> AsyncIterator[Choices]:
    """Enter every request's stream; entered once all of them are admitted, so that a refusal of any is a refusal of all.

    Those admitted first run while the others wait, and free their slots when they are done: a request of more choices
    than there are slots gets through. Raises as `EngineManager.stream` does.
    """
    if len(requests) == 1:
        async with manager.stream(requests[0]) as stream:
            yield Choices([stream], _single(stream))
        return
    streams: dict[int, TokenStream] = {}
    all_in = anyio.Event()
    # No buffer: a slow reader stops these tasks, and the streams merge what comes meanwhile.
    sender, receiver = anyio.create_memory_object_stream[tuple[int, Delta]](0)

    async def carry(index: int, request: GenerationRequest, to: MemoryObjectSendStream[tuple[int, Delta]]) -> None:
        async with to, manager.stream(request) as stream:
            streams[index] = stream
            if len(streams) == len(requests):
                all_in.set()
            async for delta in stream:
                await to.send((index, delta))

    try:
        async with anyio.create_task_group() as tasks, receiver:
            async with sender:
                for index, request in enumerate(requests):
                    tasks.start_soon(carry, index, request, sender.clone())
            await all_in.wait()
            yield Choices([streams[index] for index in range(len(requests))], receiver)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _single(stream: TokenStream) -> AsyncIterator[tuple[int, Delta]]:
    async for delta in stream:
        yield 0, delta


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
