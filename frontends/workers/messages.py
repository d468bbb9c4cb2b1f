"""What an owner and its workers say to each other, over a socket pair: the raw socket's framing around messages of their own.

Both ends are processes of one program on one machine, so what is Python's own travels pickled.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import msgspec

from frontends.http.idempotency_store import CachedResponse, Name
from frontends.rawsocket.frames import MAX_ANSWER, FrameReader, encode

# From a worker


class Offer(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A request wants a slot, under a number of the worker's: the fields of `Ticket`. The clock is the machine's."""

    number: int
    request_id: str
    tenant: str
    priority: int
    prompt_tokens: int
    max_tokens: int | None
    arrived: float | None
    deadline: float | None
    best_effort: bool


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """It does not need it any more, whether it has it yet or not; what became of it."""

    number: int
    generated: int
    complete: bool


class FirstToken(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """It has its first token."""

    number: int


class StepCount(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """What the engine told this worker of its steps, and when: the fields of `EngineSample`."""

    told: float
    steps: float
    busy_seconds: float
    running: int
    waiting: int
    kv_usage: float
    kv_tokens: int | None
    preemptions: int
    prompt_tokens: int
    generation_tokens: int


class Load(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Connections that are open, and how many have been taken in all."""

    open: int
    taken: int


class Want(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """A place at the engine: at a later one than `life`, the last that this worker knows."""

    life: int


class Up(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Requests can be taken, by the engine `life`. `described` is for a person."""

    life: int
    described: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The engine would not start, or died. `wrong_argument` tells what ends the program with 2."""

    reason: str
    wrong_argument: bool


class WorkerMetrics(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The worker's own metrics, pickled."""

    number: int
    metrics: bytes


class MetricsRequest(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The metrics of all workers are wanted."""

    number: int


class Claim(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A request with an `Idempotency-Key` is about to be answered: has it been before?"""

    number: int
    name: Name
    body: bytes


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The request that got the claim of this number has been answered, or not."""

    number: int
    kind: str
    answer: bytes | None


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """The answer to `Check`: the event loop turns."""


class Parting(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """The worker has drained. It takes what is on its way to it, and should get no more connections."""


# From the owner


class Start(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """The engine is there, if it is `launched`, or will be soon; `client` is the pickled `CoreClient`, None where each worker has an engine
    of its own. `limit` and `max_waiting` are those of the owner's admission, which keep their values."""

    life: int
    client: bytes | None
    launched: bool
    limit: int | None
    max_waiting: int | None


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=17):
    number: int


class Declined(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """At once, or after it has waited."""

    number: int
    reason: str
    retry_after: float


class WorkerMetricsRequest(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """The worker's metrics are wanted."""

    number: int


class MetricsReply(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The metrics of all workers, pickled."""

    number: int
    metrics: bytes


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Requests that a dead worker has left in the engine."""

    request_ids: list[str]


class Died(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """The engine did; `for_good`, or another one comes. `stalled`: it made no step, and was killed."""

    reason: str
    for_good: bool
    stalled: bool = False


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Drain after `--drain-delay`, and end; `now` ends open requests at once."""

    now: bool


class Claimed(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The answer that there was, if any, or why there is none to be had: the fields of an `HTTPFailure`."""

    number: int
    kept: CachedResponse | None
    refused: tuple[int, str, str, dict[str, str]] | None


class Reread(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """The operator's files are to be read again now."""


class Check(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Answer with `Alive`."""


FromWorker = (
    Offer | Leave | FirstToken | StepCount | Load | Want | Up | Failed | WorkerMetrics | MetricsRequest | Claim | Answered | Alive | Parting
)
FromOwner = Start | Granted | Declined | WorkerMetricsRequest | MetricsReply | Abort | Died | Stop | Claimed | Reread | Check


class Channel(asyncio.Protocol):
    """One end. After `listen()`, `receive` is called for each message, also for those that came before, and `lost` when the other end is
    gone."""

    def __init__(self, kind: Any, receive: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._reader: FrameReader[Any] = FrameReader(kind, MAX_ANSWER)
        self._receive = receive
        self._lost = lost
        self._listens = False

    @classmethod
    async def open(cls, connection: socket.socket, kind: Any, receive: Callable[[Any], None], lost: Callable[[], None]) -> "Channel":
        _, channel = await asyncio.get_running_loop().create_connection(lambda: cls(kind, receive, lost), sock=connection)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def listen(self) -> None:
        self._listens = True
        self._drain()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        # What `receive` needs is made between `open()` and `listen()`. uvloop reads on after `pause_reading()` in `connection_made`.
        if self._listens:
            self._drain()

    def _drain(self) -> None:
        while (message := self._reader.next()) is not None:
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()

    def send(self, message: Any) -> None:
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        self._transport.close()
