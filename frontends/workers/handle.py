"""The supervisor's handle of one worker: its process, channel, connections and tickets."""

import multiprocessing
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs

from frontends.http.settings import HTTPServerSettings
from frontends.workers import messages
from frontends.workers.admission_server import AdmissionServer
from frontends.workers.channel import Channel
from frontends.workers.idempotency import IdempotencyServer
from frontends.workers.messages import Load
from frontends.workers.responses import ResponsesServer
from frontends.workers.worker import work
from llmserve import MetricsSnapshot

STOP_SECONDS = 5.0


@attrs.define(eq=False)
class WorkerHandle:
    """One worker.

    Attributes:
        index: its number as a client of the engine cores.
        handed: the socket over which it gets connections.
        wants: the engines where it requests a place, each with the last life that it knows.
        engines: the numbers of the engines with which it takes requests.
        began: whether it has been up, and may have open requests.
        given: the number of connections that it was handed.
        questions: the number of consecutive unanswered checks.
        silent: whether too many checks are unanswered; the worker then gets no connections.
        parting: whether it has drained; it then gets no connections either.
    """

    index: int
    process: Any
    handed: socket.socket
    channel: Channel = attrs.field(init=False)
    answers: IdempotencyServer = attrs.field(init=False)
    responses: ResponsesServer = attrs.field(init=False)
    admission_server: AdmissionServer | None = None
    wants: dict[int, int] = attrs.field(factory=dict)
    engines: set[int] = attrs.field(factory=set)
    began: bool = False
    metrics: MetricsSnapshot | None = None
    given: int = 0
    questions: int = 0
    silent: bool = False
    parting: bool = False
    load: Load = attrs.field(factory=lambda: Load(0, 0))

    @classmethod
    async def spawn(
        cls,
        index: int,
        settings: HTTPServerSettings,
        *,
        first: bool,
        receive: Callable[["WorkerHandle", Any], None],
        lost: Callable[["WorkerHandle"], None],
    ) -> "WorkerHandle":
        ours, theirs = socket.socketpair()
        handed, taken = socket.socketpair()
        for end in (ours, theirs, handed, taken):
            end.setblocking(False)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, taken, settings, first), daemon=True)
        process.start()
        theirs.close()
        taken.close()
        handle = cls(index, process, handed)
        handle.channel = await Channel.open(ours, messages.FromWorker, lambda message: receive(handle, message), lambda: lost(handle))
        handle.channel.listen()
        return handle

    @property
    def up(self) -> bool:
        """Whether it takes requests. Before that it answers that it or the engine is starting."""
        return bool(self.engines)

    @property
    def connections(self) -> int:
        """The number of its connections, open or on their way."""
        return self.load.open + self.given - self.load.taken

    def hand(self, connection: socket.socket) -> bool:
        """Hand it an accepted connection; return False if too many are on their way."""
        try:
            socket.send_fds(self.handed, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self.given += 1
        return True

    def part(self) -> None:
        """Hand it no more connections. It notices that only after it has got all handed ones."""
        self.parting = True
        with suppress(OSError):
            self.handed.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(STOP_SECONDS)
        self.handed.close()
        self.channel.close()
