"""A response in the background is cancelled, deleted or dropped, and the engine dies, at every suspension point."""

import asyncio
import itertools
from contextlib import suppress
from typing import Any

import anyio
import msgspec
import pytest
from cancellation.interrupt import Reached, interrupted
from quiescence import Audit, AuditedEngine, check_quiescent

from frontends.access.caller import Caller
from frontends.answers import background
from frontends.answers.background import BackgroundResponses
from frontends.answers.generation import Generation
from frontends.answers.served_model import ServedModel
from frontends.responses.memory import KEEP_SECONDS, ResponseMemory
from frontends.responses.stored import Name, Operation
from llmserve import AdmissionConfig, EngineManager, LLMServeError, ManagerConfig, RestartConfig
from llmserve.engines.simulated.engine import SimulatedConfig

pytestmark = pytest.mark.anyio

BODY = msgspec.json.encode({"input": "hello", "max_output_tokens": 3, "background": True})


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Rig:
    """Makes responses; one of the two tasks of each is interrupted."""

    def __init__(self, manager, monkeypatch, method):
        self.manager = manager
        self.now = 0.0
        self.memory = ResponseMemory(lambda: self.now)
        self.generation = Generation(ServedModel(manager, "sim"), self.memory)
        work = getattr(BackgroundResponses, method)

        async def interrupt(background, *args):
            await interrupted(work(background, *args), self.points, self.reached)

        monkeypatch.setattr(BackgroundResponses, method, interrupt)

    async def make(self, point, fault):
        """Return whether the task had such a suspension point, whether the response was kept then, and its status in the end."""
        wanted, builder = await self.generation.parse("/v1/responses", BODY, Caller())
        self.name, self.kept = Name(None, builder.id), False
        self.points, self.reached = {point}, Reached(lambda: self.act(fault))
        answered = False
        with suppress(LLMServeError, asyncio.CancelledError):
            async for body in await self.generation.whole(wanted, builder):
                assert msgspec.json.decode(body)["status"] == "queued"
                answered = True
        with anyio.fail_after(10):
            while self.generation._background._tasks or self.manager.statistics().open or self.manager.state == "restarting":
                await anyio.sleep(0.001)
        found = self.memory.do(Operation("get", self.name))
        assert answered or found is None
        return self.reached.times > 0, self.kept, found.status if found else None

    def act(self, fault):
        self.kept = self.memory.do(Operation("get", self.name)) is not None
        fault(self)


def cancelled(rig):
    rig.memory.do(Operation("cancel", rig.name))


def deleted(rig):
    rig.memory.do(Operation("delete", rig.name))


def dropped(rig):
    rig.now += KEEP_SECONDS
    assert rig.memory.do(Operation("get", rig.name)) is None


def engine_died(rig):
    rig.manager.engine.kill()


def closed(rig):
    for task in rig.generation._background._tasks:
        task.cancel()


# The statuses of a response that was kept when the fault came, and of one that was not.
ENDS: dict[Any, tuple[set[str], set[str | None]]] = {
    cancelled: ({"cancelled"}, {"incomplete"}),
    deleted: (set(), {"incomplete"}),
    dropped: (set(), {"incomplete"}),
    # A response that nothing was read of starts again.
    engine_died: ({"incomplete", "failed"}, {"incomplete", "failed", None}),
    closed: ({"queued", "in_progress"}, {None}),
}


@pytest.mark.parametrize("method", ["_run", "_generate"])
@pytest.mark.parametrize("fault", ENDS)
async def test_at_every_suspension(fault, method, monkeypatch):
    monkeypatch.setattr(background, "REFUSAL_SECONDS", 10)
    engine, audit = AuditedEngine(SimulatedConfig(time_scale=0.1, abort_seconds=0.01)), Audit()
    config = ManagerConfig(
        admission=AdmissionConfig(max_running=4), restart=RestartConfig(most=1000, first_pause=0.001, longest_pause=0.001), drain_timeout=5
    )
    async with EngineManager(engine, config, [audit]) as manager:
        rig = Rig(manager, monkeypatch, method)
        for point in itertools.count(1):
            reached, kept, status = await rig.make(point, fault)
            if not reached:
                assert status == "incomplete"
                break
            after, before = ENDS[fault]
            assert status in ((after or {None}) if kept else before)
            check_quiescent(manager, audit)
        assert point >= 2
