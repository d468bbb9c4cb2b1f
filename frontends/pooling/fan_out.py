"""Makes the vectors of one request's inputs."""

import math
from collections.abc import Callable, Mapping, Sequence

import anyio

from frontends.openai.fan_out import first_error
from frontends.openai.wanted import renamed
from llmserve import CancellationToken, Embedding, EngineManager, PoolingRequest


async def embed_all(
    manager: EngineManager,
    requests: Sequence[PoolingRequest],
    names: Callable[[int], Mapping[str, str]] = lambda _: {},
    at_once: int | None = None,
) -> list[Embedding]:
    """Return the vectors in the order of their requests.

    `names` returns the client's field names of a request by the library's, for errors.

    At most `at_once` requests are open together. None means as many as the server runs, so that the
    others do not wait in the server's queue before those of other clients. Raises as `EngineManager.embed` does. One
    failed request cancels all others.
    """
    numbered = enumerate(requests)
    # A deadline is for the whole answer, also where most inputs wait for the first ones.
    token = CancellationToken(deadline=anyio.current_time() + (requests[0].deadline or math.inf))
    found: dict[int, Embedding] = {}

    async def work() -> None:
        for index, request in numbered:
            with renamed(**names(index)):
                found[index] = await manager.embed(request, token)

    with first_error():
        async with anyio.create_task_group() as tasks:
            for _ in range(min(len(requests), at_once or _at_once(manager, requests[0].tenant))):
                tasks.start_soon(work)
    return [found[index] for index in range(len(requests))]


def _at_once(manager: EngineManager, tenant: str) -> int:
    if not manager.engine_is_up:
        # The first request is refused, with the reason.
        return 1
    admission, limits = manager.statistics().admission, manager.config.admission.table.of(tenant)
    limit = admission.limit if admission is not None else None
    bounds = (limit or manager.info.max_num_seqs, limits.concurrency if limits is not None else None)
    return max(1, min(bound for bound in bounds if bound is not None))
