"""Cancellation, a lost client and a dead engine at every suspension of a raw-socket stream."""

import asyncio
import itertools

import anyio
import msgspec
import pytest
from cancellation.interrupt import Reached, interrupted
from quiescence import Audit, AuditedEngine, check_quiescent
from socket_support import running_socket

from frontends.rawsocket import frames
from frontends.rawsocket.connection import Connection
from frontends.rawsocket.frames import Credit, Open
from llmserve import AdmissionConfig, EngineManager, ManagerConfig, RestartConfig
from llmserve.engines.simulated.engine import SimulatedConfig

pytestmark = pytest.mark.anyio

BODY = msgspec.Raw(msgspec.msgpack.encode({"prompt": "hello", "max_tokens": 3, "ignore_eos": True}))
CONFIG = ManagerConfig(
    admission=AdmissionConfig(max_running=1), restart=RestartConfig(most=1000, first_pause=0.001, longest_pause=0.001), drain_timeout=5
)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def cancelled(connection, channel, task, engine):
    task.cancel()


def told_so(connection, channel, task, engine):
    channel.token.cancel("the client says so")


def client_gone(connection, channel, task, engine):
    connection._transport.abort()


def engine_died(connection, channel, task, engine):
    engine.kill()


class Rig:
    """Interrupts the first stream of each connection at one point."""

    def __init__(self, monkeypatch, engine):
        self.point, self.fault, self.reached = 0, client_gone, None
        serve = Connection._serve

        async def interrupted_serve(connection, channel, body):
            if channel.id != 1:
                await serve(connection, channel, body)
                return
            task = asyncio.current_task()
            self.reached = Reached(lambda: self.fault(connection, channel, task, engine))
            await interrupted(serve(connection, channel, body), {self.point}, self.reached)

        monkeypatch.setattr(Connection, "_serve", interrupted_serve)

    async def _read(self, raw, ends):
        """Read until all streams have ended, or the fault has; return those that have not ended.

        The fault sends nothing to the client.
        """
        async with anyio.create_task_group() as tasks:

            async def read():
                while ends and (message := await raw.read()) is not None:
                    if isinstance(message, (frames.End, frames.Error)):
                        ends.remove(message.id)
                tasks.cancel_scope.cancel()

            tasks.start_soon(read)
            while self.fault not in (cancelled, client_gone) or not (self.reached and self.reached.times) or ends > {1}:
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        return ends

    async def ask(self, served, point, fault, credit, queued):
        """Return whether the task had such a suspension point."""
        self.point, self.fault, self.reached = point, fault, None
        async with served.raw() as raw:
            if queued:
                raw.send(Open(2, 1000, BODY))
            raw.send(Open(1, credit, BODY))
            if credit == 1:
                raw.send(Credit(1, 1000))
            ends = await self._read(raw, {1, 2} if queued else {1})
            # Each stream gets its end once, unless the client is gone or the server cancels its own
            # task.
            if fault in (told_so, engine_died):
                assert not ends
            elif fault is cancelled:
                assert ends <= {1}
        with anyio.fail_after(10):
            while served.manager.statistics().open or served.manager.state == "restarting":
                await anyio.sleep(0.001)
        return self.reached is not None and self.reached.times > 0


@pytest.mark.parametrize("queued", [False, True], ids=["at once", "queued"])
@pytest.mark.parametrize("credit", [1, 1000], ids=["little credit at first", "credit"])
@pytest.mark.parametrize("fault", [cancelled, told_so, client_gone, engine_died])
async def test_at_every_suspension(monkeypatch, fault, credit, queued):
    audit = Audit()
    engine = AuditedEngine(SimulatedConfig(time_scale=0.1, abort_seconds=0.01))
    rig = Rig(monkeypatch, engine)
    async with running_socket(engine=engine, config=CONFIG, observers=[audit]) as served:
        for point in itertools.count(1):
            if not await rig.ask(served, point, fault, credit, queued):
                break
            check_quiescent(served.manager, audit)
        assert point >= 3
        async with served.raw() as raw:
            raw.send(Open(3, 1000, BODY))
            await raw.read_until(frames.End)
        await served.quiet()
        assert isinstance(served.manager, EngineManager)
        check_quiescent(served.manager, audit)
