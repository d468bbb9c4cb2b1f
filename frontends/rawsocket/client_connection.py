"""The client's side of a connection: it sends requests and passes each message to its stream."""

import asyncio
import math
import time
from typing import Any, cast

import attrs

from frontends.openai.response_format import body_of
from frontends.rawsocket import frames
from frontends.rawsocket.client_stream import WINDOW, RemoteStream
from frontends.rawsocket.errors import to_exception
from frontends.rawsocket.frames import (
    Cancel,
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
from llmserve import CancellationToken, Delta, EngineDead, GenerationRequest, InvalidRequest
from llmserve.images.parts import openai_form

# Seconds between pings. A server closes connections that send nothing for 300 s.
PING_SECONDS = 100.0
# Fields that change the answer but that the protocol does not support.
NOT_CARRIED = ("tools", "template_kwargs", "return_prompt_ids")


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
        stream = self._streams[self._last] = RemoteStream(self._last, request, self.send, self.leave)
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
        "messages": None if request.messages is None else [openai_form(message) for message in request.messages],
        "tenant": request.tenant,
        "priority": request.priority,
        "deadline": left if left < math.inf else None,
        "best_effort": request.best_effort or None,
        "adapter": request.adapter,
        "add_special_tokens": request.add_special_tokens,
        "truncate_prompt_tokens": request.truncate_prompt_tokens,
        "truncation_side": None if request.truncate_prompt_tokens is None else request.truncation_side,
    }
    return {name: value for name, value in fields.items() if value is not None}
