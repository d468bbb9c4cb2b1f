"""A start in a thread: its result, and giving it up in every state. Threads are real."""

import asyncio
import threading

import anyio
import pytest

from llmserve.runtime import starting
from llmserve.runtime.starting import GivenUp, left_alone, start_in_thread

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Use a real clock, as for threads."""
    return "asyncio"


class Hang:
    """The operation that a start waits for; `end` releases it, like the kill of a core."""

    def __init__(self, outcome="result"):
        self.waits = threading.Event()
        self.released = threading.Event()
        self.discarded = threading.Event()
        self.outcome = outcome
        self.check_raised = False

    def __call__(self, check):
        check()
        self.waits.set()
        self.released.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        try:
            check()
        except GivenUp:
            self.check_raised = True
        return self.outcome

    def discard(self, result):
        assert result == self.outcome
        self.discarded.set()


async def give_up_while_it_hangs(hang, end):
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:

            async def start():
                await start_in_thread(hang, end=end, discard=hang.discard)
                raise AssertionError("it has a result")

            tasks.start_soon(start)
            await anyio.to_thread.run_sync(hang.waits.wait)
            tasks.cancel_scope.cancel()


async def test_it_gives_the_result_and_the_error():
    assert await start_in_thread(lambda check: "up") == "up"

    def fail(check):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await start_in_thread(fail)
    assert not left_alone()


@pytest.mark.parametrize("outcome", ["result", RuntimeError("the core was killed")])
async def test_an_ended_start_is_awaited_and_its_result_discarded(outcome):
    hang = Hang(outcome)
    await give_up_while_it_hangs(hang, hang.released.set)
    assert not left_alone()
    assert hang.check_raised == hang.discarded.is_set() == (outcome == "result")


async def test_end_is_called_again_for_what_the_thread_starts_afterwards():
    hang = Hang()
    calls = []

    def end():
        calls.append(1)
        if len(calls) == 3:
            hang.released.set()

    await give_up_while_it_hangs(hang, end)
    assert len(calls) == 3
    assert not left_alone()


async def test_a_thread_that_cannot_be_ended_is_left_alone_and_discards_its_result_itself(monkeypatch):
    monkeypatch.setattr(starting, "GIVE_UP_SECONDS", 0.1)
    hang = Hang()
    await give_up_while_it_hangs(hang, lambda: None)
    assert left_alone()
    assert not hang.discarded.is_set()
    hang.released.set()
    await anyio.to_thread.run_sync(hang.discarded.wait)
    assert hang.check_raised
    with anyio.fail_after(10):
        while left_alone():
            await anyio.sleep(0.01)


def test_a_cancelled_task_of_asyncio_gives_up_as_well():
    hang = Hang()

    async def main():
        task = asyncio.create_task(start_in_thread(hang, end=hang.released.set, discard=hang.discard))
        await asyncio.to_thread(hang.waits.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert hang.discarded.is_set()
