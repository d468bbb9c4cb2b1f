"""Tells the operator when a second engine on the same GPU would serve more.

With a small model an engine's process, one Python process, uses a full core and its GPU idles half
of the time (docs/scaling.md).
"""

from collections.abc import Callable
from contextlib import suppress

import anyio
import attrs
import psutil

from frontends.logs.operator_log import say
from llmserve.observability import nvml

# As in the report's verdict (benchmarks/analysis/evidence.py). An engine's process spins while it
# waits, so only the idle GPU beside it says something.
FULL_CORE, IDLE_GPU = 0.85, 0.75
# Seconds between two looks, and how many in a row must show the same.
LOOK_SECONDS, LOOKS = 2.0, 15
TITLE = "EngineCore"


@attrs.frozen
class Look:
    """The CPU seconds of each engine's process, and the share of time in which the GPUs were busy."""

    at: float
    cpu: dict[int, float]
    gpu: float


def look(now: float) -> Look:
    """Read the figures. The share is 1 if the GPUs cannot be read."""
    cpu = {}
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if TITLE in " ".join(child.cmdline()):
                times = child.cpu_times()
                cpu[child.pid] = times.user + times.system
    shares = nvml.utilizations()
    return Look(now, cpu, sum(shares) / len(shares) if shares else 1.0)


async def watch(engines: int, running: Callable[[], int], read: Callable[[float], Look] = look) -> None:
    """Log once that more engines than `engines` would pay. `running` returns the running requests."""
    before, seen = read(anyio.current_time()), list[float]()
    while len(seen) < LOOKS:
        await anyio.sleep(LOOK_SECONDS)
        now = read(anyio.current_time())
        busy = [(spent - before.cpu[pid]) / (now.at - before.at) for pid, spent in now.cpu.items() if pid in before.cpu]
        full = len(busy) == engines and min(busy, default=0.0) >= FULL_CORE
        seen = [*seen, now.gpu] if full and running() and now.gpu < IDLE_GPU else []
        before = now
    share = sum(seen) / len(seen)
    words = f"hint      the engine's process uses a full CPU core, and the GPU is busy {share:.0%} of the time"
    say(f"{words}; --engines {2 * engines} may serve more (docs/scaling.md)")
