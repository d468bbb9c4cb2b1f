"""A raw-socket client with the manager's interface: the same methods, requests and errors.

    async with SocketClient("tcp://127.0.0.1:9000") as client:
        completion = await client.generate("The capital of France is", max_tokens=16)

Client and server require asyncio.
"""

import asyncio
import math
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, cast

import anyio
import attrs

from frontends.openai.response_format import body_of
from frontends.rawsocket import frames
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.errors import to_exception
from frontends.rawsocket.frames import (
    Cancel,
    Credit,
    Deltas,
    Detail,
    End,
    Error,
    FrameError,
    FrameReader,
    Hello,
    Open,
    Ping,
    Pong,
    Started,
    Welcome,
)
from llmserve import (
    CancellationToken,
    Delta,
    EngineDead,
    GenerationRequest,
    InvalidRequest,
    LLMServeError,
    RequestCancelled,
    Timeline,
    TokenStream,
)
from llmserve.generation import Generation
from llmserve.lifecycle.delta_buffer import DeltaBuffer
from llmserve.lifecycle.open_request import interrupter

# Maximum number of unread pieces per stream. The client grants new credit when it has read half of
# them.
WINDOW = 256
CONNECT_SECONDS = 10.0
# Seconds between pings. A server closes connections that send nothing for 300 s.
PING_SECONDS = 100.0
# Fields that change the answer but that the protocol does not support.
NOT_CARRIED = ("tools", "template_kwargs", "return_prompt_ids")


class SocketClient(Generation):
    """One connection for any number of streams.

    `stream()` and `generate()` are those of `EngineManager`, with three differences. The fields of
    `NOT_CARRIED` are refused, the server chooses `request_id`, and nothing calls `on_arrival`. An
    error's `partial` is the output that has arrived.

    Args:
        address: tcp://host:port, tls://host:port or unix:///path.
        key: the API key, if the server requires one.
        tls: how to verify a tls:// server; None uses the system's CAs.
    """

    def __init__(self, address: str, *, key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.address = parse_address(address)
        self._key = key
        self._tls = tls
        self._wire: Wire | None = None

    def __repr__(self) -> str:
        return f"<SocketClient {self.address} {'connected' if self._wire else 'not connected'}>"

    async def __aenter__(self) -> Self:
        """Connect to the server.

        Raises OSError where no server listens, FrameError where the server refuses the connection,
        and TimeoutError.
        """
        loop, address = asyncio.get_running_loop(), self.address
        hello = Hello(frames.VERSION, self._key)
        with anyio.fail_after(CONNECT_SECONDS):
            if address.scheme == "unix":
                _, wire = await loop.create_unix_connection(lambda: Wire(str(address), hello), address.path)
            else:
                context = (self._tls or ssl.create_default_context()) if address.scheme == "tls" else None
                _, wire = await loop.create_connection(lambda: Wire(str(address), hello), address.host, address.port, ssl=context)
            try:
                await wire.welcomed
            except BaseException:
                wire.transport.abort()
                raise
        self._wire = wire
        return self

    async def __aexit__(self, *_: object) -> None:
        wire, self._wire = self.wire, None
        wire.transport.close()
        with anyio.move_on_after(1, shield=True):
            await wire.lost.wait()

    @property
    def wire(self) -> "Wire":
        if self._wire is None:
            raise RuntimeError("the client is not connected; use it in `async with`")
        return self._wire

    @property
    def model(self) -> str:
        """The name under which the server serves its model."""
        return self.wire.welcomed.result().model

    @asynccontextmanager
    async def _stream(self, request: GenerationRequest, token: CancellationToken | None) -> AsyncIterator["RemoteStream"]:
        """Open a stream, and wait until the server has admitted it.

        Leaving early frees its resources on the server. Raises EngineDead when the connection is
        lost.
        """
        await self.wire.writable.wait()
        stream = self.wire.open(request, token)
        unlink = token.add_callback(interrupter(stream)) if token is not None else (lambda: None)
        try:
            while not stream.started and not stream.ended:
                await stream.change.wait()
            stream.raise_if_failed()
            yield stream
        finally:
            unlink()
            # Does nothing if the stream has ended; else it cancels the stream on the server.
            stream.fail(RequestCancelled("the stream was closed"))

    async def ping(self) -> float:
        """Return the round-trip time in seconds."""
        return await self.wire.ping()


class RemoteStream(TokenStream):
    """A `TokenStream` that a connection feeds. Its timeline has the times at the client."""

    def __init__(self, number: int, request: GenerationRequest, wire: "Wire") -> None:
        self.id = number
        self.started = False
        self.change = asyncio.Event()
        self._unread = 0
        self._wire = wire
        timeline = Timeline(request_id=request.request_id, tenant=request.tenant, arrived=time.monotonic())
        super().__init__(timeline, time.monotonic, _Silent(), self._over)

    def _over(self) -> None:
        self.change.set()
        if self.error is not None:
            self._wire.leave(self)

    async def __anext__(self) -> Delta:
        delta = await super().__anext__()
        if self._unread >= WINDOW // 2:
            if not self.ended:
                self._wire.send(Credit(self.id, self._unread))
            self._unread = 0
        return delta

    async def _rest(self) -> Delta | None:
        # Reading grants the credit that the server needs to continue.
        read: DeltaBuffer | None = None
        try:
            async for delta in self:
                if read is None:
                    read = DeltaBuffer(delta)
                else:
                    read.add(delta)
        except LLMServeError:
            if self.error is None:
                raise
        return None if read is None else read.whole()

    def start(self, message: Started) -> None:
        self.timeline.request_id, self.timeline.prompt_tokens = message.request_id, message.prompt_tokens
        self.timeline.admitted = time.monotonic()
        self.started = True
        self.change.set()

    def end(self, message: End) -> None:
        self.timeline.cached_tokens = message.usage.cached_tokens
        self.put(Delta("", (), message.finish_reason, message.stop_reason))

    def receive(self, delta: Delta) -> None:
        """Take one piece. It has used one credit, which is granted again when the piece is read."""
        self._unread += 1
        self.put(delta)


class _Silent:
    """An observer that does nothing: the server has the metrics."""

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        pass

    def finished(self, timeline: Timeline) -> None:
        pass


class Wire(asyncio.Protocol):
    """The client's half of a connection."""

    def __init__(self, address: str, hello: Hello) -> None:
        loop = asyncio.get_running_loop()
        self.welcomed: asyncio.Future[Welcome] = loop.create_future()
        self.lost = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport: asyncio.Transport
        self._address = address
        self._hello = hello
        self._reader: FrameReader[frames.FromServer] = FrameReader(frames.FromServer, frames.MAX_ANSWER)
        self._streams: dict[int, RemoteStream] = {}
        self._pings: dict[int, asyncio.Future[float]] = {}
        self._last = self._pinged = 0
        self._reason: str | None = None
        self._alive: asyncio.TimerHandle | None = None

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.send(self._hello)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (message := self._reader.next()) is not None:
                self._receive(message)
        except FrameError as error:
            self._reason = str(error)
            self.transport.abort()

    def _keep_alive(self) -> None:
        self.send(Ping(0))
        self._alive = asyncio.get_running_loop().call_later(PING_SECONDS, self._keep_alive)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        self.writable.set()
        if self._alive is not None:
            self._alive.cancel()
        words = f"the connection to {self._address} was lost" + (f": {self._reason or error}" if self._reason or error else "")
        if not self.welcomed.done():
            self.welcomed.set_exception(FrameError(self._reason) if self._reason else ConnectionResetError(words))
        for waiting in self._pings.values():
            if not waiting.done():
                waiting.set_exception(EngineDead(words))
        for stream in list(self._streams.values()):
            stream.fail(EngineDead(words))

    # Messages from the server

    def _receive(self, message: frames.FromServer) -> None:
        match message:
            case Deltas():
                for number, text, token_ids in message.pieces:
                    stream = self._streams.get(number)
                    # The client may have closed the stream since.
                    if stream is not None:
                        stream.receive(Delta(text, token_ids))
            case Error(id=0):
                raise FrameError(message.message)
            case Welcome():
                if not self.welcomed.done():
                    self.welcomed.set_result(message)
                    self._keep_alive()
            case Pong():
                self._came_back(message.number)
            case Started() | Detail() | End() | Error():
                self._tell(message)

    def _came_back(self, number: int) -> None:
        waiting = self._pings.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(time.monotonic())

    def _tell(self, message: Started | Detail | End | Error) -> None:
        stream = self._streams.get(message.id)
        if stream is None:
            return
        match message:
            case Started():
                stream.start(message)
            case Detail():
                stream.receive(message.delta)
            case End():
                del self._streams[stream.id]
                stream.end(message)
            case Error():
                del self._streams[stream.id]
                stream.fail(to_exception(message))

    # Calls of the client

    def open(self, request: GenerationRequest, token: CancellationToken | None) -> RemoteStream:
        if self.lost.is_set():
            raise EngineDead(f"the connection to {self._address} was lost")
        self._last = self._free_id()
        body = frames.raw(wire_request(request, math.inf if token is None else token.deadline))
        trace = frames.Trace(**{name: value for name, value in request.trace_headers.items() if name in frames.Trace.__struct_fields__})
        data = frames.encode(Open(self._last, WINDOW, body, trace))
        limit = self.welcomed.result().max_frame
        if len(data) - frames.LENGTH > limit:
            raise InvalidRequest(f"the request is larger than {limit} bytes", request.prompt_field)
        stream = self._streams[self._last] = RemoteStream(self._last, request, self)
        self.transport.write(data)
        return stream

    def _free_id(self) -> int:
        number = self._last % (2**32 - 1) + 1
        while number in self._streams:
            number = number % (2**32 - 1) + 1
        return number

    def leave(self, stream: RemoteStream) -> None:
        """Remove a stream that ended with an error; if the client ended it, cancel it there."""
        if self._streams.pop(stream.id, None) is not None and not self.lost.is_set():
            self.send(Cancel(stream.id, str(getattr(stream.error, "reason", "the client left"))[:128]))

    async def ping(self) -> float:
        self._pinged += 1
        number = self._pinged
        waiting: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._pings[number] = waiting
        began = time.monotonic()
        self.send(Ping(number))
        return await waiting - began

    def send(self, message: Any) -> None:
        if not self.lost.is_set():
            self.transport.write(frames.encode(message))


def wire_request(request: GenerationRequest, deadline: float = math.inf) -> dict[str, Any]:
    """Return the body of POST /generate for a request. Raises InvalidRequest.

    `deadline` is a time of the monotonic clock, like a token's deadline.
    """
    for name in NOT_CARRIED:
        if getattr(request, name):
            raise InvalidRequest(f"the raw-socket protocol does not support {name}: omit it", name)
    left = math.inf if request.deadline is None else request.deadline
    left = min(left, max(0.001, deadline - time.monotonic()))
    constraint = request.sampling.structured_outputs
    fields = attrs.asdict(request.sampling, recurse=False) | {
        "logit_bias": dict(request.sampling.logit_bias) or None,
        "structured_outputs": None if constraint is None else body_of(constraint),
        "prompt": request.prompt,
        "messages": None if request.messages is None else [dict(message) for message in request.messages],
        "tenant": request.tenant,
        "priority": request.priority,
        "deadline": left if left < math.inf else None,
        "best_effort": request.best_effort or None,
        "adapter": request.adapter,
    }
    return {name: value for name, value in fields.items() if value is not None}
