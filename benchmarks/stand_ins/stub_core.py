"""vLLM over an engine core that answers at once: what is left is the cost of the process that holds the engine's client.

`python -m benchmarks.stand_ins.stub_core STREAMS frontends.aiohttp_app ARGUMENTS` runs a server module so, ours or vLLM's own; with
`nothing` in place of a number, one of ours on the simulated engine is given an engine that does nothing, with `nothing:SECONDS:TEXT` at a
pace.

The core lives in the client's own process and event loop, without ZeroMQ and msgpack; its part of the time is the same for all. Its
outputs have the fields of a real core's (`recorded_steps`). It waits until so many streams are open and then makes a token for each of
them at every turn of the loop, until all have ended: were it to begin with the first, that one would be over before the next is
tokenised.
"""

import asyncio
import itertools
import runpy
import sys
import time
from types import SimpleNamespace
from typing import Any

from benchmarks.stand_ins.recorded_steps import RecordedSteps

# Ids from the middle of the bundled model's vocabulary: words that end at a token, as most do.
TOKENS = [2000 + 37 * number for number in range(512)]


class StubbedCore:
    """Stands in for vLLM's AsyncMPClient."""

    engine_ranks_managed = (0,)

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._going = False
        # vLLM's sockets, of which there are none here, end with their context.
        self.resources = SimpleNamespace(engine_dead=False, ctx=SimpleNamespace(destroy=lambda linger: None))
        self._open: dict[str, int] = {}
        self._fresh: set[str] = set()
        self._arrival = asyncio.Event()
        self._tokens = itertools.cycle(TOKENS)
        self._recorded = RecordedSteps()

    async def add_request_async(self, request: Any) -> None:
        self._open[request.request_id] = request.sampling_params.max_tokens
        self._fresh.add(request.request_id)
        self._arrival.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._open.pop(request_id, None)
            self._fresh.discard(request_id)

    async def get_output_async(self) -> Any:
        await asyncio.sleep(0)
        if not (self._going and self._open):
            # Asked before it waits: all of them may have come already.
            while len(self._open) < self._streams:
                self._arrival.clear()
                await self._arrival.wait()
            self._going = True
        now = time.monotonic()
        outputs = [self._output(request_id, left, now) for request_id, left in list(self._open.items())]
        return self._recorded.step(outputs, now)

    def _output(self, request_id: str, left: int, now: float) -> Any:
        """The next token of a request that has `left` to come. The only token of an answer is a last one."""
        which = "last" if left == 1 else "first" if request_id in self._fresh else "middle"
        self._fresh.discard(request_id)
        if left > 1:
            self._open[request_id] = left - 1
        else:
            del self._open[request_id]
        return self._recorded.output(which, request_id, next(self._tokens), now)

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        """vLLM's server asks for it at its start."""

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing to stop."""


def install(streams: int) -> None:
    """Every AsyncLLM that this process makes from now on has such a core."""
    from vllm.v1.engine.core_client import EngineCoreClient

    EngineCoreClient.make_async_mp_client = staticmethod(lambda *_, **__: StubbedCore(streams))


def install_nothing(pause: float = 0.0, text: str = " word") -> None:
    """Every simulated engine that this process makes from now on does nothing but repeat a text."""
    from benchmarks.stand_ins.null_engine import NoEngine
    from llmserve.engines.simulated.engine import SimulatedEngine

    SimulatedEngine.from_args = classmethod(lambda *_: NoEngine(text, pause))  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    _, streams, module, *arguments = sys.argv
    if streams.startswith("nothing"):
        _, *pace = streams.split(":", 2)
        if pace:
            install_nothing(float(pace[0]), pace[1])
        else:
            install_nothing()
    else:
        install(int(streams))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
