"""The times of writes: after every step while the loop keeps up, less often under overload."""

import asyncio

import pytest

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.net.flush import CAUGHT_UP, FALLING_BEHIND, MAX_HOLD, WINDOW, FlushScheduler


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualLoop}


class Loop:
    """Simulate a loop that is busy for a `busy` share of the time.

    `steps` of an engine take `seconds` each and note one token each.
    """

    def __init__(self, **options):
        self.cpu = 0.0
        self.busy = 0.0
        self.flushed = []
        self.scheduler = FlushScheduler(clock=self.time, cpu_clock=lambda: self.cpu, **options)

    def time(self):
        return asyncio.get_running_loop().time()

    def flush(self):
        self.flushed.append(self.time())

    async def steps(self, count, seconds):
        for _ in range(count):
            self.cpu += seconds * self.busy
            await asyncio.sleep(seconds)
            self.scheduler.later(self.flush)
            await asyncio.sleep(0)
        await asyncio.sleep(1.0)

    def gaps(self):
        return [after - before for before, after in zip(self.flushed, self.flushed[1:], strict=False)]


async def test_while_the_loop_keeps_up_every_step_is_written():
    loop = Loop()
    loop.busy = FALLING_BEHIND - 0.05
    await loop.steps(200, 0.01)
    assert len(loop.flushed) == 200
    assert loop.scheduler.hold == 0.0


async def test_a_loop_that_falls_behind_writes_less_often_and_never_later_than_it_may():
    loop = Loop()
    loop.busy = 1.0
    await loop.steps(1000, 0.004)
    assert loop.scheduler.hold == MAX_HOLD
    # Four steps of 4 ms in 15 ms.
    assert 250 <= len(loop.flushed[-260:]) <= 260
    assert loop.gaps()[-1] <= MAX_HOLD + 0.004 + 1e-9
    assert len(loop.flushed) < 400
    assert max(loop.gaps()) <= MAX_HOLD + 0.004 + 1e-9


async def test_it_writes_every_step_again_when_the_loop_has_caught_up():
    loop = Loop()
    loop.busy = 1.0
    await loop.steps(200, 0.004)
    assert loop.scheduler.hold > 0
    loop.busy = CAUGHT_UP - 0.1
    await loop.steps(200, 0.004)
    assert loop.scheduler.hold == 0.0
    assert loop.gaps()[-5:] == pytest.approx([0.004] * 5)


async def test_held_tokens_are_written_in_time_even_if_no_step_follows():
    loop = Loop()
    loop.busy = 1.0
    await loop.steps(int(20 * WINDOW / 0.004), 0.004)
    before = len(loop.flushed)
    loop.scheduler.later(loop.flush)
    await asyncio.sleep(0)
    loop.scheduler.later(loop.flush)
    noted = loop.time()
    await asyncio.sleep(1.0)
    assert len(loop.flushed) > before
    assert loop.flushed[-1] - noted <= MAX_HOLD


@pytest.mark.parametrize("urgent", [True, False])
async def test_urgent_tokens_are_written_once_after_their_step(urgent):
    loop = Loop()
    loop.scheduler.hold, loop.scheduler._flushed = MAX_HOLD, loop.time()
    loop.scheduler.later(loop.flush)
    if urgent:
        loop.scheduler.soon(loop.flush)
        loop.scheduler.later(loop.flush)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(loop.flushed) == urgent
    await asyncio.sleep(1.0)
    assert len(loop.flushed) == 1


async def test_with_a_bound_of_nothing_nothing_is_held():
    loop = Loop(max_hold=0.0)
    loop.busy = 1.0
    await loop.steps(200, 0.004)
    assert len(loop.flushed) == 200


async def test_a_connection_that_fails_does_not_keep_others_from_writing(caplog):
    loop = Loop()

    def fail():
        raise OSError

    loop.scheduler.soon(fail)
    loop.scheduler.soon(loop.flush)
    await asyncio.sleep(0.01)
    assert len(loop.flushed) == 1
    assert "writing to a connection failed" in caplog.text
