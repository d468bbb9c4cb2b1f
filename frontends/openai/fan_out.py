"""Runs several sequences as one answer, for a request with n or with a list of prompts."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio

from llmserve import Completion, EngineManager, GenerationRequest, InvalidRequest, TokenStream


async def generate_choices(manager: EngineManager, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """Return the complete answers in the order of their requests.

    Raises as `EngineManager.generate` does. One failed request cancels all others.
    """
    if len(requests) == 1:
        return [await manager.generate(requests[0])]
    check_places(manager, requests)
    answers: dict[int, Completion] = {}

    async def generate(index: int, request: GenerationRequest) -> None:
        answers[index] = await manager.generate(request)

    with first_error():
        async with anyio.create_task_group() as tasks:
            for index, request in enumerate(requests):
                tasks.start_soon(generate, index, request)
    return [answers[index] for index in range(len(requests))]


@asynccontextmanager
async def open_choices(manager: EngineManager, requests: Sequence[GenerationRequest]) -> AsyncIterator[list[TokenStream]]:
    """Open the streams of all requests, and yield them when all are admitted.

    If one request is refused, all are. Admitted requests run while the others wait, and free their
    slots when they are done. So a request may have more choices than there are slots. Raises as
    `EngineManager.stream` does.
    """
    if len(requests) == 1:
        async with manager.stream(requests[0]) as stream:
            yield [stream]
        return
    check_places(manager, requests)
    streams: dict[int, TokenStream] = {}
    settled = anyio.Event()

    async def hold(index: int, request: GenerationRequest) -> None:
        async with manager.stream(request) as stream:
            streams[index] = stream
            if len(streams) == len(requests):
                settled.set()
            # Until all streams are open, only this code reads the stream's error.
            stream.notify(lambda: settled.set() if stream.error is not None else None)
            await anyio.sleep_forever()

    with first_error():
        async with anyio.create_task_group() as tasks:
            for index, request in enumerate(requests):
                tasks.start_soon(hold, index, request)
            await settled.wait()
            if len(streams) < len(requests):
                for stream in streams.values():
                    stream.raise_if_failed()
            yield [streams[index] for index in range(len(requests))]
            tasks.cancel_scope.cancel()


def check_places(manager: EngineManager, requests: Sequence[GenerationRequest]) -> None:
    """Check that the choices of one request can ever be admitted together.

    Raises InvalidRequest if there are more choices than an idle server can run and queue, or than
    their tenant may have open. Admission without limits accepts any number.
    """
    choices, admission = len(requests), manager.statistics().admission
    if admission is not None and admission.limit is not None and admission.max_waiting is not None:
        reason = f"this server runs at most {admission.limit} and queues at most {admission.max_waiting}"
        _check_most(choices, admission.limit + admission.max_waiting, reason)
    limits = manager.config.admission.table.of(requests[0].tenant)
    if limits is not None and limits.concurrency is not None:
        _check_most(choices, limits.concurrency, f"its tenant may have at most {limits.concurrency} open")


def _check_most(choices: int, most: int, reason: str) -> None:
    if choices > most:
        words = f"this request has {choices} choices (prompts times n), but {reason}: send at most {most} in one request"
        raise InvalidRequest(words, "n")


@contextmanager
def first_error() -> Iterator[None]:
    """Raise the first error of a task group as it was raised, without its exception group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
