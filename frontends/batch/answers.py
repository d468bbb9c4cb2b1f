"""The routes that a line of a batch may name, each as a function of a body."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import attrs

from frontends.access.caller import Caller
from frontends.answers.generation import ROUTES, Generation
from frontends.answers.served_model import ServedModel
from frontends.answers.vectors import Vectors
from frontends.batch.room import SHARE
from frontends.openai import sse
from llmserve import GenerationRequest

Made = TypeVar("Made", bound=GenerationRequest)

# The last priority that a request can have.
LAST = 2**31 - 1


class Answers:
    """Answers lines by the path that they name.

    `table` has a function for each path. It takes a body and a caller, and returns the answer's id
    and its JSON. It passes the caller's `on_arrival` on, and raises LLMServeError.
    """

    def __init__(self, served: ServedModel) -> None:
        self._manager = served.manager
        self._generation, self._vectors = Generation(served), Vectors(served)
        self.table: dict[str, Callable[[bytes, Caller], Awaitable[tuple[str, bytes]]]] = {
            **{path: partial(self._answer, path) for path in ROUTES},
            "/v1/messages/count_tokens": self._count,
            "/generate": self._generate,
            **{path: partial(self._embed, path) for path in Vectors.kinds},
        }

    async def __call__(self, path: str, body: bytes, caller: Caller) -> tuple[str, bytes]:
        return await self.table[path](body, caller)

    async def _answer(self, path: str, body: bytes, caller: Caller) -> tuple[str, bytes]:
        wanted, builder = await self._generation.parse(path, body, caller)
        parts = await self._generation.whole(attrs.evolve(wanted, requests=[_last(one) for one in wanted.requests]), builder)
        return builder.id, b"".join([part async for part in parts])

    async def _generate(self, body: bytes, caller: Caller) -> tuple[str, bytes]:
        wanted, _ = await self._generation.parse_own(body, caller)
        return wanted.request_id, sse.encode(await self._manager.generate(_last(wanted)))

    async def _count(self, body: bytes, caller: Caller) -> tuple[str, bytes]:
        return "", sse.encode(await self._generation.count_tokens(body, caller))

    async def _embed(self, path: str, body: bytes, caller: Caller) -> tuple[str, bytes]:
        wanted = await self._vectors.parse(path, body, caller)
        inputs = attrs.evolve(wanted.inputs, requests=[_last(one) for one in wanted.requests])
        # A line takes one slot when it starts, so its inputs begin slowly.
        few = max(1, self._manager.info.max_num_seqs // SHARE)
        parts = await self._vectors.whole(attrs.evolve(wanted, inputs=inputs), few)
        return wanted.id, b"".join([part async for part in parts])


def _last(request: Made) -> Made:
    """Return the request behind all others."""
    return attrs.evolve(request, best_effort=True, priority=LAST)
