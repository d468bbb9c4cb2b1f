"""A real socket server, its client, and a client that sends arbitrary messages."""

import asyncio
from contextlib import asynccontextmanager

import anyio
from http_support import request

from frontends.access.api_keys import Keys
from frontends.access.control import Access
from frontends.rawsocket import frames
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.client import SocketClient
from frontends.rawsocket.frames import FrameReader, Hello
from frontends.rawsocket.server import open_server
from llmserve import EngineManager, ManagerConfig
from llmserve.engines.simulated.engine import SimulatedConfig, SimulatedEngine


class Served:
    """A manager and the addresses at which it is served."""

    def __init__(self, manager, addresses):
        self.manager = manager
        self.addresses = [str(address) for address in addresses]

    @asynccontextmanager
    async def raw(self, *, greet=True):
        """A client that does not keep to the protocol. It reads one message at a time."""
        address = parse_address(self.addresses[0])
        reader, writer = await asyncio.open_connection(address.host, address.port)
        raw = Raw(reader, writer)
        try:
            if greet:
                raw.send(Hello(frames.VERSION))
                await raw.read()
            yield raw
        finally:
            writer.transport.abort()

    async def quiet(self):
        """Check that soon nothing of any request is left."""
        with anyio.fail_after(5):
            while self.manager.statistics().open:
                await anyio.sleep(0.01)
        statistics = self.manager.statistics()
        assert (statistics.running, statistics.waiting, statistics.engine.running, statistics.engine.waiting) == (0, 0, 0, 0)


class Raw:
    def __init__(self, reader, writer):
        self._reader = reader
        self.writer = writer
        self._frames = FrameReader(frames.FromServer, frames.MAX_ANSWER)

    def send(self, *messages):
        self.writer.write(frames.encode(*messages))

    async def read(self):
        """Return the next message, or None at the connection's end."""
        with anyio.fail_after(10):
            while (message := self._frames.next()) is None:
                data = await self._reader.read(65536)
                if not data:
                    return None
                self._frames.feed(data)
        return message

    async def read_until(self, kind):
        found = []
        while not found or not isinstance(found[-1], kind):
            found.append(await self.read())
            assert found[-1] is not None, found
        return found


@asynccontextmanager
async def running_socket(
    *,
    listen="tcp://127.0.0.1:0",
    config=None,
    engine=None,
    tls=None,
    key=None,
    access=None,
    observers=(),
    limiter=None,
    max_streams=1024,
    **simulated,
):
    engine = engine or SimulatedEngine(SimulatedConfig(**{"time_scale": 0.0, **simulated}), model="sim")
    addresses = [parse_address(listen)]
    access = access or Access(Keys.single(key) if key else None)
    async with (
        EngineManager(engine, config or ManagerConfig(drain_timeout=1), observers) as manager,
        open_server(
            manager,
            "sim",
            addresses,
            tls=tls,
            access=access or Access(Keys.single(key) if key else None),
            limiter=limiter,
            max_streams=max_streams,
        ) as bound,
    ):
        yield Served(manager, bound)


class OverSocket:
    """The client in the form that the frontend contract needs."""

    def __init__(self, manager, client):
        self.manager = manager
        self.request = request
        self._client = client

    @asynccontextmanager
    async def stream(self, **fields):
        async with self._client.stream(request(**fields)) as stream:
            yield (delta.text async for delta in stream)


@asynccontextmanager
async def over_socket(**options):
    async with running_socket(**options) as served, SocketClient(served.addresses[0]) as client:
        yield OverSocket(served.manager, client)
