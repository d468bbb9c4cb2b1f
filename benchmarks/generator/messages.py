"""What a run and its generator processes send each other: typed messages in frames of bounded size.

A frame is the length of its message in four bytes, and the message as MessagePack. A message that
is too long, or of another type, ends the link. Nothing in a message is executed.
"""

import asyncio
from contextlib import suppress
from typing import Annotated, TypeAlias, TypeVar

import anyio
import msgspec

from benchmarks.recording.results import RequestRecord
from benchmarks.targets.server import ClientOptions
from benchmarks.workload.plan import PointPlan

# The prompts of a file and a trace are the largest messages.
MAX_BYTES = 256 * 2**20
MAX_RECORDS = 64
# A worker sends its progress several times a second.
SILENCE_SECONDS = 30.0

Message = TypeVar("Message")


class Job(msgspec.Struct, tag=True):
    """A worker's share of a point, and the server that gets it."""

    url: str
    model: str
    options: ClientOptions
    plan: PointPlan


class ReadClock(msgspec.Struct, tag=True):
    """Asks for the worker's clock."""


class Start(msgspec.Struct, tag=True):
    """The start of the point, by the worker's clock."""

    origin: float


class Stop(msgspec.Struct, tag=True):
    """Ends a job early."""


class Ready(msgspec.Struct, tag=True):
    """The job's prompts are made."""


class Clock(msgspec.Struct, tag=True):
    """The worker's monotonic clock."""

    seconds: float


class Working(msgspec.Struct, tag=True):
    """The progress of a job, as in `Progress`."""

    in_flight: int
    done: int
    tokens: int
    ttft: float | None


class Records(msgspec.Struct, tag=True):
    """Some of the requests of a job that has ended."""

    records: Annotated[list[RequestRecord], msgspec.Meta(max_length=MAX_RECORDS)]


class Finished(msgspec.Struct, tag=True):
    """The end of a job, after its requests."""

    cpu_seconds: float
    loop_lag: float | None
    complete: bool


class Failed(msgspec.Struct, tag=True):
    """The worker cannot do the job."""

    reason: Annotated[str, msgspec.Meta(max_length=1000)]


ToWorker: TypeAlias = Job | ReadClock | Start | Stop
FromWorker: TypeAlias = Ready | Clock | Working | Records | Finished | Failed
TO_WORKER = msgspec.msgpack.Decoder(ToWorker)
FROM_WORKER = msgspec.msgpack.Decoder(FromWorker)


class LinkLost(Exception):
    """The other end is gone, or sent what is no message; the text continues "it ..."."""


class Link:
    """Sends and receives messages over a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # The length of a message whose receiver was cancelled before the message had arrived.
        self._length: int | None = None

    @property
    def is_lost(self) -> bool:
        return self._reader.at_eof() or self._reader.exception() is not None or self._writer.is_closing()

    async def send(self, message: msgspec.Struct) -> None:
        """Send a message. Raises LinkLost."""
        content = msgspec.msgpack.encode(message)
        if len(content) > MAX_BYTES:
            raise LinkLost(f"would get {len(content):,} bytes at once, more than {MAX_BYTES:,}")
        try:
            self._writer.write(len(content).to_bytes(4) + content)
            await self._writer.drain()
        except OSError as error:
            raise LinkLost("closed its connection") from error

    async def receive(
        self, decoder: "msgspec.msgpack.Decoder[Message]", max_bytes: int = MAX_BYTES, seconds: float | None = SILENCE_SECONDS
    ) -> Message:
        """Return the next message. A cancelled call loses none. Raises LinkLost."""
        try:
            with anyio.fail_after(seconds):
                if self._length is None:
                    self._length = int.from_bytes(await self._reader.readexactly(4))
                if self._length > max_bytes:
                    raise LinkLost("sent a message that is too long")
                content = await self._reader.readexactly(self._length)
        except TimeoutError:
            raise LinkLost(f"has sent nothing for {seconds:g} s") from None
        except (OSError, EOFError) as error:
            raise LinkLost("closed its connection") from error
        self._length = None
        try:
            return decoder.decode(content)
        except msgspec.MsgspecError as error:
            raise LinkLost(f"sent an invalid message: {error}") from error

    def close(self) -> None:
        self._writer.close()

    async def aclose(self) -> None:
        """Close the link, and wait for the end of its connection."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
