"""The routes that a line of a batch may name, each as a function of a body."""

from collections.abc import Awaitable, Callable
from functools import partial

import attrs

from frontends.access.caller import Caller
from frontends.answers.generation import ROUTES, Generation
from frontends.answers.served_model import ServedModel
from frontends.answers.vectors import Vectors

# The last priority that a request can have.
LAST = 2**31 - 1


class Answers:
    """Answers lines by the path that they name.

    `table` has a function for each path. It takes a body and a caller, and returns the answer's id
    and its JSON. It passes the caller's `on_arrival` on, and raises LLMServeError.
    """

    def __init__(self, served: ServedModel) -> None:
        self._generation, self._vectors = Generation(served), Vectors(served)
        self.table: dict[str, Callable[[bytes, Caller], Awaitable[tuple[str, bytes]]]] = {
            **{path: partial(self._generate, path) for path in ROUTES},
            **{path: partial(self._embed, path) for path in Vectors.kinds},
        }

    async def __call__(self, path: str, body: bytes, caller: Caller) -> tuple[str, bytes]:
        return await self.table[path](body, caller)

    async def _generate(self, path: str, body: bytes, caller: Caller) -> tuple[str, bytes]:
        wanted, builder = await self._generation.parse(path, body, caller)
        behind = [attrs.evolve(request, best_effort=True, priority=LAST) for request in wanted.requests]
        parts = await self._generation.whole(attrs.evolve(wanted, requests=behind), builder)
        return builder.id, b"".join([part async for part in parts])

    async def _embed(self, path: str, body: bytes, caller: Caller) -> tuple[str, bytes]:
        wanted = await self._vectors.parse(path, body, caller)
        behind = [attrs.evolve(request, best_effort=True, priority=LAST) for request in wanted.requests]
        parts = await self._vectors.whole(attrs.evolve(wanted, inputs=attrs.evolve(wanted.inputs, requests=behind)))
        return wanted.id, b"".join([part async for part in parts])
