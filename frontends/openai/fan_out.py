"""Several sequences as one answer: a request with n, or with a list of prompts."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio

from llmserve import Completion, EngineManager, GenerationRequest, InvalidRequest, TokenStream


async def generate_choices(manager: EngineManager, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """The whole answers, in the order of their requests. Raises as `EngineManager.generate` does; one that fails ends all."""
    if len(requests) == 1:
        return [await manager.generate(requests[0])]
    check_places(manager, requests)
    answers: dict[int, Completion] = {}

    async def generate(index: int, request: GenerationRequest) -> None:
        answers[index] = await manager.generate(request)

    with _first_error():
        async with anyio.create_task_group() as tasks:
            for index, request in enumerate(requests):
                tasks.start_soon(generate, index, request)
    return [answers[index] for index in range(len(requests))]


@asynccontextmanager
async def open_choices(manager: EngineManager, requests: Sequence[GenerationRequest]) -> AsyncIterator[list[TokenStream]]:
    """Enter every request's stream; entered once all of them are admitted, so that a refusal of any is a refusal of all.

    Those admitted first run while the others wait, and free their slots when they are done: a request of more choices
    than there are slots gets through. Raises as `EngineManager.stream` does.
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
            # Until all are in, nobody else looks at it.
            stream.notify(lambda: settled.set() if stream.error is not None else None)
            await anyio.sleep_forever()

    with _first_error():
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
    """Raises InvalidRequest for more choices than run and wait at once on an idle server, or than their tenant may have at once: there is
    no later time at which they fit.

    An admission without limits takes any number.
    """
    choices, admission = len(requests), manager.statistics().admission
    if admission is not None and admission.limit is not None and admission.max_waiting is not None:
        reason = f"this server runs {admission.limit} at once and lets {admission.max_waiting} wait"
        _check_most(choices, admission.limit + admission.max_waiting, reason)
    limits = manager.config.admission.table.of(requests[0].tenant)
    if limits is not None and limits.concurrency is not None:
        _check_most(choices, limits.concurrency, f"its tenant may have {limits.concurrency} at once")


def _check_most(choices: int, most: int, reason: str) -> None:
    if choices > most:
        words = f"this request has {choices} choices (prompts times n), and {reason}: send at most {most} in one request"
        raise InvalidRequest(words, "n")


@contextmanager
def _first_error() -> Iterator[None]:
    """Of a task group's errors the first one, as it was raised."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
