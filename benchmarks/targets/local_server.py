"""Our HTTP server over a manager of this process, to measure one engine with and without HTTP.

The server's clients are other processes. The stages that the engine recorded are joined to the
clients' records by request id, on the clock that all processes of a host share.
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
    """An observer that keeps every finished request's timeline until `join()`."""

    def __init__(self) -> None:
        self._kept: dict[str, Timeline] = {}

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        """Do nothing, because the finished timeline has all readings."""

    def finished(self, timeline: Timeline) -> None:
        self._kept[timeline.request_id] = timeline

    def join(self, records: list[RequestRecord], origin: float) -> None:
        """Add the engine's stages to the records, and forget them."""
        for record in records:
            # The id that the client sees has a prefix for the kind of answer.
            line = self._kept.get(record.request_id.removeprefix("chat").removeprefix("cmpl-"))
            if line is not None and record.submitted is None:
                take_timeline(record, line, origin)
        self._kept.clear()


@asynccontextmanager
async def serve_here(
    manager: EngineManager, model: str, keep_bytes: int = KEEP_BYTES, max_incomplete: int | None = None
) -> AsyncIterator[str]:
    """Serve and yield the URL.

    `keep_bytes` bounds the answers for `Idempotency-Key`, and `max_incomplete` the incomplete bodies.
    """
    listener = bind("127.0.0.1", 0)
    memory = ResponseCache(asyncio.get_running_loop().time, keep_bytes)
    async with running(build_app(manager, model, memory=memory, max_incomplete=max_incomplete)) as acceptor, listen(acceptor, listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def serve_sockets_here(manager: EngineManager, model: str, addresses: Sequence[str]) -> AsyncIterator[list[str]]:
    """Serve raw sockets during the context and yield their addresses, with ports."""
    async with open_server(manager, model, [parse_address(address) for address in addresses]) as bound:
        yield [str(address) for address in bound]


def connect(address: str) -> SocketClient:
    return SocketClient(address)
