"""Tenants share the places of batches, however many batches each has."""

import anyio
import pytest

from benchmarks.stand_ins.virtual_clock import VirtualLoop
from frontends.batch.places import Places


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualLoop}


class Holders:
    """Batches that hold a place until they are told to end, each with its tenant."""

    def __init__(self, tasks, shared, most):
        self.places = Places(shared, most)
        self.tasks = tasks
        self.ends = {}
        self.holding = []

    async def start(self, *batches):
        for one in batches:
            self.ends[one] = anyio.Event()
            self.tasks.start_soon(self._hold, one)
            await anyio.wait_all_tasks_blocked()

    async def _hold(self, one):
        await self.places.acquire(one[0])
        self.holding.append(one)
        try:
            await self.ends[one].wait()
        finally:
            self.holding.remove(one)
            self.places.release(one[0])

    async def end(self, *batches):
        for one in batches:
            self.ends[one].set()
            await anyio.wait_all_tasks_blocked()


async def test_a_tenant_has_a_place_although_another_one_holds_all_that_are_shared():
    async with anyio.create_task_group() as tasks:
        holders = Holders(tasks, 2, 4)
        await holders.start("a1", "a2", "a3", "b1", "b2", "c1", "d1")
        assert holders.holding == ["a1", "a2", "b1", "c1"]
        # The places beyond the shared ones are for tenants without a place.
        await holders.end("a1")
        assert holders.holding == ["a2", "b1", "c1", "d1"]
        await holders.end("a2", "c1")
        assert holders.holding == ["b1", "d1", "a3"]
        await holders.end("d1", "a3")
        assert holders.holding == ["b1", "b2"]
        tasks.cancel_scope.cancel()


async def test_a_free_place_is_the_tenant_s_that_holds_fewest_and_then_goes_around():
    async with anyio.create_task_group() as tasks:
        holders = Holders(tasks, 2, 2)
        await holders.start("a1", "a2", "a3", "a4", "b1", "b2", "c1")
        for one in ("a1", "a2", "b1", "c1"):
            await holders.end(one)
        assert holders.holding == ["a3", "b2"]
        tasks.cancel_scope.cancel()


async def test_a_batch_that_leaves_the_queue_or_leaves_with_its_place_costs_none():
    async with anyio.create_task_group() as tasks:
        holders = Holders(tasks, 1, 1)
        await holders.start("a1")
        async with anyio.create_task_group() as leaving:
            left = Holders(leaving, 1, 1)
            left.places = holders.places
            await left.start("b1")
            await holders.start("c1")
            # The place comes at the moment of the cancellation.
            holders.ends["a1"].set()
            leaving.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert holders.holding == ["c1"]
        await holders.end("c1")
        await holders.start("d1")
        assert holders.holding == ["d1"]
        tasks.cancel_scope.cancel()
