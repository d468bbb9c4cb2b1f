"""The constrained requests that are in vLLM's engine, and what each adds to its steps.

vLLM does not report how long a step's constraints take. Where that has to be known, each request's constraint is tried out again, with the
tokens that have come under it.
"""

from collections.abc import Set as AbstractSet

import anyio

from llmserve.engine import costly
from llmserve.engines.vllm.grammars.admission import Grammars
from llmserve.engines.vllm.outputs import Receiver
from llmserve.errors import LLMServeError
from llmserve.runtime.cpus import available_cpus
from llmserve.structured import StructuredOutputs

# With 5 s until slow steps are noticed, a request is ended within 15 s.
WEIGH_SECONDS = 8.0


class Constrained:
    """`open_requests` are the ids of all requests that have not ended."""

    def __init__(self, open_requests: AbstractSet[str]) -> None:
        self._open = open_requests
        self._known: dict[str, tuple[StructuredOutputs, Receiver]] = {}

    def add(self, request_id: str, constraint: StructuredOutputs, receiver: Receiver) -> None:
        receiver.token_ids = []
        self._known = {name: one for name, one in self._known.items() if name in self._open} | {request_id: (constraint, receiver)}

    async def suspects(self, grammars: Grammars, step_seconds: float) -> list[str]:
        """As `Engine.suspects`. One that the machine is too busy to try out is a suspect only where no other is, and only the newest."""
        costs: dict[str, float] = {}
        unknown: list[str] = []
        places = anyio.CapacityLimiter(max(1, available_cpus() // 2))

        async def weigh(name: str, constraint: StructuredOutputs, receiver: Receiver) -> None:
            async with places:
                try:
                    costs[name] = await grammars.cost(constraint, receiver.token_ids or [])
                except LLMServeError:
                    unknown.append(name)

        inside = [(name, *one) for name, one in self._known.items() if name in self._open]
        with anyio.move_on_after(WEIGH_SECONDS):
            async with anyio.create_task_group() as tasks:
                # The newest first: it has been there for the shortest time while steps were quick.
                for one in reversed(inside):
                    tasks.start_soon(weigh, *one)
        return costly(costs, step_seconds) or unknown[:1]
