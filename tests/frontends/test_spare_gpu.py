"""The hint that a second engine on a GPU would serve more."""

import anyio
import pytest

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.program import spare_gpu
from frontends.program.spare_gpu import LOOK_SECONDS, LOOKS, Look

pytestmark = pytest.mark.anyio

# Enough for the hint, and too little for a second one.
LONG = (LOOKS + 2) * LOOK_SECONDS


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualLoop}


async def hints(monkeypatch, *, cpu=(1.0,), gpu=0.45, running=8, seconds=LONG, engines=1):
    """Return the lines after some seconds with these shares of a core and of the GPU."""
    lines = []
    monkeypatch.setattr(spare_gpu, "say", lines.append)

    def read(now):
        return Look(now, {pid: now * share for pid, share in enumerate(cpu)}, gpu(now) if callable(gpu) else gpu)

    with anyio.move_on_after(seconds):
        await spare_gpu.watch(engines, lambda: running, read)
    return lines


async def test_a_full_core_beside_an_idle_gpu_gives_one_hint(monkeypatch):
    (line,) = await hints(monkeypatch)
    assert "busy 45% of the time" in line
    assert "--engines 2 " in line


async def test_the_hint_doubles_the_engines(monkeypatch):
    (line,) = await hints(monkeypatch, cpu=(0.98, 1.01), engines=2)
    assert "--engines 4 " in line


@pytest.mark.parametrize(
    "seen",
    [
        {"gpu": 0.9},
        {"cpu": (0.5,)},
        {"cpu": (1.0, 0.3), "engines": 2},
        {"cpu": (), "engines": 1},
        {"running": 0},
        {"seconds": LONG / 2},
        {"gpu": lambda now: 0.9 if int(now / LOOK_SECONDS) % LOOKS == 0 else 0.4},
    ],
    ids=["busy GPU", "spare core", "one spare core", "no process", "no requests", "too short", "now and then busy"],
)
async def test_there_is_no_hint_otherwise(monkeypatch, seen):
    assert not await hints(monkeypatch, **seen)
