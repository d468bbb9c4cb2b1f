"""vLLM over an engine core that answers immediately, to measure the client's process.

`python -m benchmarks.stand_ins.stub_core STREAMS frontends.aiohttp_app ARGUMENTS` runs a server
module with the stub, ours or vLLM's. With `nothing` instead of a number, our server's simulated
engine is replaced by an engine that does no work. With `nothing:SECONDS:TEXT`, that engine has a
pace.

The core lives in the client's process and event loop, without ZeroMQ and msgpack; its part of the
time is the same for all variants. Its outputs have the fields of a real core's (`recorded_steps`).
It waits until STREAMS streams are open. Then it makes a token for each of them at every turn of the
loop, until all have ended. If it began with the first stream, that stream would end before the next
one is tokenised.
"""

import asyncio
import itertools
import runpy
import sys
import time
from types import SimpleNamespace
from typing import Any

from benchmarks.stand_ins.recorded_steps import RecordedSteps

# Ids from the middle of the bundled model's vocabulary, words that end at a token as most do.
TOKENS = [2000 + 37 * number for number in range(512)]


class StubbedCore:
    """Replaces vLLM's AsyncMPClient."""

    engine_ranks_managed = (0,)

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._going = False
        # vLLM closes its sockets through their context; this core has none.
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
            # Test before waiting, because all streams may be open already.
            while len(self._open) < self._streams:
                self._arrival.clear()
                await self._arrival.wait()
            self._going = True
        now = time.monotonic()
        outputs = [self._output(request_id, left, now) for request_id, left in list(self._open.items())]
        return self._recorded.step(outputs, now)

    def _output(self, request_id: str, left: int, now: float) -> Any:
        """Return the next of `left` tokens; the only token of an answer counts as the last."""
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
        """Do nothing; vLLM's server calls this at its start."""

    def shutdown(self, timeout: float | None = None) -> None:
        """Do nothing."""


def install(streams: int) -> None:
    """Give every AsyncLLM that this process makes later a stubbed core."""
    from vllm.v1.engine.core_client import EngineCoreClient

    EngineCoreClient.make_async_mp_client = staticmethod(lambda *_, **__: StubbedCore(streams))


def install_nothing(pause: float = 0.0, text: str = " word") -> None:
    """Replace every simulated engine that this process makes later by one that repeats a text."""
    from benchmarks.stand_ins.null_engine import NoEngine
    from llmserve.engines.simulated.engine import SimulatedEngine

    SimulatedEngine.from_args = classmethod(lambda *_: NoEngine(text, pause))  # type: ignore[method-assign, assignment]  # a stand-in


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
