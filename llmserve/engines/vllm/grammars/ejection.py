"""The constrained requests in vLLM's engine, and the time that each adds to its steps.

vLLM does not report the time of constraints. So each request's constraint is tested again when the
time is needed, with the request's tokens so far.
"""

from collections.abc import Set as AbstractSet

import anyio

from llmserve.engine import costly
from llmserve.engines.vllm.grammars.admission import Grammars
from llmserve.engines.vllm.outputs import Receiver
from llmserve.errors import LLMServeError
from llmserve.runtime.cpus import available_cpus
from llmserve.structured import StructuredOutputs

# Slow steps are noticed within 5 s, so a request is ended within 15 s.
WEIGH_SECONDS = 8.0


class Constrained:
    """Records constrained requests. `open_requests` are the ids of all open requests."""

    def __init__(self, open_requests: AbstractSet[str]) -> None:
        self._open = open_requests
        self._known: dict[str, tuple[StructuredOutputs, Receiver]] = {}

    def add(self, request_id: str, constraint: StructuredOutputs, receiver: Receiver) -> None:
        receiver.token_ids = []
        self._known = {name: one for name, one in self._known.items() if name in self._open} | {request_id: (constraint, receiver)}

    async def suspects(self, grammars: Grammars, step_seconds: float) -> list[str]:
        """Return the suspects, as `Engine.suspects` does.

        If no test finds one, the newest request that could not be tested on the busy machine is the
        suspect.
        """
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
                # The newest first: for it, steps were quick for the shortest time.
                for one in reversed(inside):
                    tasks.start_soon(weigh, *one)
        return costly(costs, step_seconds) or unknown[:1]
