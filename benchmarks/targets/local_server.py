"""Our HTTP server over a manager of this process, so that one run measures the same engine with and without HTTP.

Its clients are other processes, as a server's are; the stages that the engine saw are joined to their records by request id, on
the clock that all processes of a host share.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.recording.results import RequestRecord
from benchmarks.targets.inprocess import take_timeline
from frontends.http.app import build_app
from frontends.http.idempotency_store import KEEP_BYTES, ResponseCache
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.client import SocketClient
from frontends.rawsocket.server import open_server
from llmserve import EngineManager, Timeline


class Timelines:
    """An observer that keeps every finished request's timeline until it is asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, Timeline] = {}

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        """Nothing: the timeline has it all in the end."""

    def finished(self, timeline: Timeline) -> None:
        self._kept[timeline.request_id] = timeline

    def join(self, records: list[RequestRecord], origin: float) -> None:
        """Fill in what the engine saw, and forget it."""
        for record in records:
            # The id that the client is told says also which kind of answer it is.
            line = self._kept.get(record.request_id.removeprefix("cmpl-"))
            if line is not None and record.submitted is None:
                take_timeline(record, line, origin)
        self._kept.clear()


@asynccontextmanager
async def serve_here(manager: EngineManager, model: str, keep_bytes: int = KEEP_BYTES) -> AsyncIterator[str]:
    """The URL of a server that lives as long as the context, and keeps `keep_bytes` of answers for `Idempotency-Key`."""
    listener = bind("127.0.0.1", 0)
    memory = ResponseCache(asyncio.get_running_loop().time, keep_bytes)
    async with running(build_app(manager, model, memory=memory)) as acceptor, listen(acceptor, listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def serve_sockets_here(manager: EngineManager, model: str, addresses: Sequence[str]) -> AsyncIterator[list[str]]:
    """The addresses of raw sockets that live as long as the context, with their ports."""
    async with open_server(manager, model, [parse_address(address) for address in addresses]) as bound:
        yield [str(address) for address in bound]


def connect(address: str) -> SocketClient:
    """A client for one of them."""
    return SocketClient(address)
