"""A response in the background is cancelled, deleted or dropped, and the engine dies, at every suspension point."""

import itertools
from typing import Any

import anyio
import msgspec
import pytest
from cancellation.interrupt import Reached, interrupted
from quiescence import Audit, AuditedEngine, check_quiescent

from frontends.access.caller import Caller
from frontends.answers.background import BackgroundResponses
from frontends.answers.generation import Generation
from frontends.answers.served_model import ServedModel
from frontends.responses.memory import KEEP_SECONDS, ResponseMemory
from frontends.responses.stored import Name
from llmserve import AdmissionConfig, EngineManager, ManagerConfig, RestartConfig
from llmserve.engines.simulated.engine import SimulatedConfig

pytestmark = pytest.mark.anyio

BODY = msgspec.json.encode({"input": "hello", "max_output_tokens": 3, "background": True})


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Rig:
    """Makes responses whose task is interrupted."""

    def __init__(self, manager, monkeypatch):
        self.manager = manager
        self.now = 0.0
        self.memory = ResponseMemory(lambda: self.now)
        self.generation = Generation(ServedModel(manager, "sim"), self.memory)
        run = BackgroundResponses._run

        async def interrupt(background, *args):
            await interrupted(run(background, *args), self.points, self.reached)

        monkeypatch.setattr(BackgroundResponses, "_run", interrupt)

    async def make(self, point, fault):
        """Return whether the task had such a suspension point, and the response in the end."""
        wanted, builder = await self.generation.parse("/v1/responses", BODY, Caller())
        self.name = Name(None, builder.id)
        self.points, self.reached = {point}, Reached(lambda: fault(self))
        async for body in await self.generation.whole(wanted, builder):
            assert msgspec.json.decode(body)["status"] == "queued"
        with anyio.fail_after(10):
            while self.generation._background._tasks or self.manager.statistics().open or self.manager.state == "restarting":
                await anyio.sleep(0.001)
        return self.reached.times > 0, self.memory.do("get", self.name)


def cancelled(rig):
    assert rig.memory.do("cancel", rig.name).status == "cancelled"


def deleted(rig):
    rig.memory.do("delete", rig.name)


def dropped(rig):
    rig.now += KEEP_SECONDS
    assert rig.memory.do("get", rig.name) is None


def engine_died(rig):
    rig.manager.engine.kill()


def closed(rig):
    for task in rig.generation._background._tasks:
        task.cancel()


ENDS: dict[Any, set[str | None]] = {
    cancelled: {"cancelled"},
    deleted: {None},
    dropped: {None},
    # A response that nothing was read of starts again.
    engine_died: {"incomplete", "failed"},
    closed: {"queued", "in_progress"},
}


@pytest.mark.parametrize("fault", ENDS)
async def test_at_every_suspension(fault, monkeypatch):
    engine, audit = AuditedEngine(SimulatedConfig(time_scale=0.1, abort_seconds=0.01)), Audit()
    config = ManagerConfig(
        admission=AdmissionConfig(max_running=4), restart=RestartConfig(most=1000, first_pause=0.001, longest_pause=0.001), drain_timeout=5
    )
    async with EngineManager(engine, config, [audit]) as manager:
        rig = Rig(manager, monkeypatch)
        for point in itertools.count(1):
            reached, found = await rig.make(point, fault)
            if not reached:
                assert found is not None
                assert found.status == "incomplete"
                break
            assert (found.status if found else None) in ENDS[fault]
            check_quiescent(manager, audit)
        assert point >= 2
