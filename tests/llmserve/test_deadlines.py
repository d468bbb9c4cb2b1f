import asyncio
from collections import Counter

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve.lifecycle.deadlines import MAX_RELEASED, Deadlines


def run(work):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work())


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40), st.one_of(st.none(), st.integers(0, 60))), max_size=40))
def test_each_expires_once_when_it_is_due_unless_it_was_released_before(plan):
    """Each watch is added at one time, due later, and possibly released."""
    expired = Counter()

    async def watch() -> None:
        clock = anyio.current_time
        deadlines, began = Deadlines(clock), clock()

        async def one(number: int, added: int, after: int, released: int | None) -> None:
            await anyio.sleep(added)

            def expire() -> None:
                expired[number] += 1
                assert clock() - began == pytest.approx(added + after)

            held = deadlines.add(began + added + after, expire)
            if released is not None:
                # Half a second apart, so that the order of the two is clear.
                await anyio.sleep(released + 0.5)
                held.release()
                held.release()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deadlines.run)
            for number, (added, after, released) in enumerate(plan):
                tasks.start_soon(one, number, added, after, released)
            await anyio.sleep(100)
            assert not len(deadlines)
            tasks.cancel_scope.cancel()

    run(watch)
    assert expired == Counter(number for number, (_, after, released) in enumerate(plan) if released is None or released + 0.5 > after)


def test_released_deadlines_do_not_pile_up():
    async def pile() -> None:
        deadlines = Deadlines(anyio.current_time)
        kept = [deadlines.add(1000.0, lambda: None) for _ in range(10)]
        for _ in range(10_000):
            deadlines.add(600.0, lambda: None).release()
        assert len(deadlines) <= 2 * (len(kept) + MAX_RELEASED)

    run(pile)
