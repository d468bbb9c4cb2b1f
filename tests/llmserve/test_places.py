"""Slots that tenants share by holding time."""

import asyncio

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from llmserve.runtime.fair_semaphore import FairSemaphore


class Rig:
    """Each request holds a slot for a given time; `served` are those that got one, in order."""

    def __init__(self, count):
        self.places = FairSemaphore(count)
        self.inside = self.most = 0
        self.served = []
        self.on_timeout = []

    async def ask(self, tenant, seconds, patience=1e9):
        try:
            async with self.places.place(tenant, patience):
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.served.append(tenant)
                try:
                    await anyio.sleep(seconds)
                finally:
                    self.inside -= 1
        except TimeoutError:
            self.on_timeout.append(tenant)

    def check_free(self, count):
        assert (self.places._free, self.places._waiting, self.places._held) == (count, {}, {})


async def test_a_tenant_with_long_jobs_delays_others_by_at_most_one_of_them():
    rig = Rig(1)
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(rig.ask, "slow", 4.0)
        await anyio.sleep(1)
        for _ in range(3):
            tasks.start_soon(rig.ask, "quick", 0.1)
    assert rig.served[:4] == ["slow", "quick", "quick", "quick"]
    rig.check_free(1)


async def test_a_request_whose_patience_ends_fails_and_leaves_its_position_to_others():
    rig = Rig(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.ask, "a", 5.0)
        await anyio.lowlevel.checkpoint()
        tasks.start_soon(rig.ask, "b", 1.0, 2.0)
        tasks.start_soon(rig.ask, "c", 1.0)
    assert (rig.served, rig.on_timeout) == (["a", "c"], ["b"])
    rig.check_free(1)


async def test_a_new_tenant_does_not_catch_up_with_all_that_others_had():
    rig = Rig(1)
    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(rig.ask, "early", 1.0)
        await anyio.sleep(6.5)
        for _ in range(12):
            tasks.start_soon(rig.ask, "late", 1.0)
    assert abs(rig.served[7:17].count("early") - rig.served[7:17].count("late")) <= 2


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})], ids=["asyncio"])
async def test_a_slot_given_to_a_cancelled_task_is_passed_on(anyio_backend):
    rig = Rig(1)
    async with anyio.create_task_group() as tasks:
        async with rig.places.place("a", 1.0):
            # Like aiohttp's cancellation of handlers: anyio's own scopes do not interrupt a wait
            # that is over.
            leaving = asyncio.create_task(rig.ask("b", 1.0))
            await anyio.sleep(0.1)
            tasks.start_soon(rig.ask, "c", 1.0)
            await anyio.sleep(0.1)
        leaving.cancel()
    assert rig.served == ["c"]
    rig.check_free(1)


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3), st.floats(0, 5), st.floats(0.01, 5)), max_size=30),
)
async def test_holders_never_exceed_the_slots_and_no_slot_is_lost(count, asked):
    rig = Rig(count)
    async with anyio.create_task_group() as tasks:

        async def later(tenant, seconds, after, patience):
            await anyio.sleep(after)
            await rig.ask(tenant, seconds, patience)

        for tenant, seconds, after, patience in asked:
            tasks.start_soon(later, tenant, seconds, after, patience)
    assert rig.most <= count
    assert len(rig.served) + len(rig.on_timeout) == len(asked)
    rig.check_free(count)
