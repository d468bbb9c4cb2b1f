"""The scripted server: plays a behaviour on raw sockets, and logs when it wrote which tokens.

The log is the truth, by the clock that the clients of this machine have too. An entry's times are
taken when the system has accepted the bytes.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import attrs
import msgspec

from benchmarks.truth.behaviours import TOKENS, Behaviour, Fault
from benchmarks.truth.script import MODEL, Step, error_event, steps

_OUTCOMES = {
    "error body": "error",
    "error event": "error",
    "reset": "connection",
    "close": "connection",
    "cut": "truncated",
    "hang": "timeout",
}
_STATUS_OUTCOMES = {429: "refused_429", 503: "refused_503"}
_FRAMING_HEADERS = {
    "chunks": ["Transfer-Encoding: chunked"],
    "trailers": ["Transfer-Encoding: chunked", "Trailer: X-Seconds"],
    "connection": [],
}
_FRAMING_ENDS = {"chunks": b"0\r\n\r\n", "trailers": b"0\r\nX-Seconds: 1\r\n\r\n", "connection": b""}
READ_LIMIT = 2**20
# A SO_LINGER of no seconds makes the system reset the connection.
_NO_LINGER = struct.pack("ii", 1, 0)


class Entry(msgspec.Struct):
    """One measured request; times are monotonic seconds.

    Attributes:
        arrived: When the server accepted the request's connection, or read its head on an older one.
        outcome: How it ended, by the names of `benchmarks.recording.results`; `cancelled` if the
            client left.
        pieces: (time, tokens) of each write that completed tokens.
        model: The model that the request names.
        prompt: Length of its prompt: token ids or characters.
    """

    arrived: float
    outcome: str = "cancelled"
    pieces: list[tuple[float, int]] = []
    model: str = ""
    prompt: int = 0


@attrs.define
class ScriptedServer:
    """Answers measured requests by a behaviour, and others (a warm-up) in an ordinary way."""

    behaviour: Behaviour
    log: list[Entry] = attrs.field(factory=list)
    _running: int = 0
    _slots: asyncio.Semaphore = attrs.field(init=False)
    _connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.behaviour.batch or 10**6)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a connection's requests until its client or the behaviour closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._connections[writer] = task
        # The first request begins with its connection.
        begun: float | None = time.monotonic()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer, begun):
                begun = None
        writer.close()
        del self._connections[writer]

    async def hang_up(self) -> None:
        """Reset all connections, and wait until their answers have ended."""
        tasks = list(self._connections.values())
        for writer in self._connections:
            writer.transport.abort()
        await asyncio.gather(*tasks)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begun: float | None) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        arrived = begun or time.monotonic()
        method, path, _ = head.split(b" ", 2)
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        if method != b"POST":
            await _reply(writer, *_look_up(path))
            return True
        request = msgspec.json.decode(body)
        if request.get("max_completion_tokens", request.get("max_tokens")) != TOKENS:
            ordinary = Behaviour(name="", does="", chat=self.behaviour.chat)
            return await Answer(ordinary, Entry(arrived), reader, writer).play(4)
        number = len(self.log)
        self.log.append(entry := Entry(arrived, pieces=[], model=request.get("model", ""), prompt=len(request.get("prompt", ""))))
        answer = Answer(self.behaviour, entry, reader, writer, self, number)
        fault = self.behaviour.fault
        if fault is not None and number % fault.every == fault.every - 1:
            return await answer.fail(fault)
        lengths = self.behaviour.lengths or (TOKENS,)
        async with self.slot():
            return await answer.play(lengths[number % len(lengths)])

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place in the batch."""
        async with self._slots:
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1

    @property
    def others(self) -> int:
        """How many requests run beside one that runs."""
        return self._running - 1


@attrs.define
class Answer:
    """One answer on one connection; `number` is its place in the log, and the request's id."""

    behaviour: Behaviour
    entry: Entry
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: ScriptedServer | None = None
    number: int = 0

    async def play(self, total: int) -> bool:
        """Send an answer with `total` tokens; return whether the connection stays open."""
        await self._head()
        await self._send(steps(self.behaviour, total))
        await self._finish()
        self.entry.outcome = "ok"
        return not self.behaviour.close

    async def fail(self, fault: Fault) -> bool:
        """Send an answer up to its fault; return whether the connection stays open."""
        self.entry.outcome = _OUTCOMES.get(fault.kind) or _STATUS_OUTCOMES.get(fault.status, "error")
        if fault.kind in ("refuse", "error body"):
            more = {"Retry-After": "1"} if fault.status in (429, 503) else {}
            await _reply(self.writer, fault.status, fault.body.encode(), more)
            return True
        if fault.after >= 0:
            await self._head()
            await self._send(_until(steps(self.behaviour, TOKENS), fault.after))
        match fault.kind:
            case "error event":
                await self._write(error_event(self.behaviour, fault.body))
                await self._finish()
                return True
            case "cut":
                await self._finish()
                return True
            case "reset":
                self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                self.writer.transport.abort()
            case "hang":
                # Nothing comes on this connection but its end.
                await self.reader.read()
        return False

    async def _head(self) -> None:
        await asyncio.sleep(self.behaviour.headers_after)
        lines = [
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream",
            f"X-Request-Id: {self.number}",
            *_FRAMING_HEADERS[self.behaviour.framing],
        ]
        lines += ["Connection: close"] if self.behaviour.close else []
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        await self.writer.drain()

    async def _send(self, segments: Iterable[Step]) -> None:
        due = time.monotonic()
        for step in segments:
            growth = self.behaviour.growth * self.server.others if self.server and step.tokens else 0.0
            due += step.wait + growth
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._write(step.data)
            if step.tokens:
                self.entry.pieces.append((time.monotonic(), step.tokens))

    async def _write(self, data: bytes) -> None:
        framed = data if self.behaviour.framing == "connection" else b"%x\r\n%b\r\n" % (len(data), data)
        self.writer.write(framed)
        await self.writer.drain()

    async def _finish(self) -> None:
        self.writer.write(_FRAMING_ENDS[self.behaviour.framing])
        await self.writer.drain()


def _until(segments: Iterable[Step], tokens: int) -> Iterator[Step]:
    sent = 0
    for step in segments:
        if sent >= tokens:
            return
        yield step
        sent += step.tokens


def _look_up(path: bytes) -> tuple[int, bytes]:
    if path == b"/v1/models":
        return 200, msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "test"}]})
    return (200, b"{}") if path == b"/health" else (404, b"{}")


async def _reply(writer: asyncio.StreamWriter, status: int, body: bytes, more: dict[str, str] | None = None) -> None:
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(more or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode() + body)
    await writer.drain()


@asynccontextmanager
async def serve(behaviour: Behaviour) -> AsyncIterator[tuple[str, ScriptedServer]]:
    """Serve on a free port; yield the URL and the server with its log."""
    scripted = ScriptedServer(behaviour)
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, limit=READ_LIMIT)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", scripted
    finally:
        server.close()
        await scripted.hang_up()
