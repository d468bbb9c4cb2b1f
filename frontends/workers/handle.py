"""One worker as its owner sees it: a process, a channel to it, a way to hand it connections, and its tickets."""

import argparse
import multiprocessing
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs

from frontends.workers import messages
from frontends.workers.admission_server import AdmissionServer
from frontends.workers.idempotency import IdempotencyServer
from frontends.workers.messages import Channel, Load
from frontends.workers.worker import work
from llmserve import MetricsSnapshot

STOP_SECONDS = 5.0


@attrs.define(eq=False)
class WorkerHandle:
    """`index` is its number as a client of the engine cores. `wants`: a place at a core after this one, None while it has one. `up`: it
    takes requests; until then it answers that it is starting, or that the engine is. `began`: it has been up, and may have something to
    finish. `questions`: those in a row that it has not answered; `silent`: it has left too many unanswered, and gets no connections.
    `parting`: it has drained, and gets none either."""

    index: int
    process: Any
    handed: socket.socket
    channel: Channel = attrs.field(init=False)
    answers: IdempotencyServer = attrs.field(init=False)
    admission_server: AdmissionServer | None = None
    wants: int | None = None
    up: bool = False
    began: bool = False
    metrics: MetricsSnapshot | None = None
    given: int = 0
    questions: int = 0
    silent: bool = False
    parting: bool = False
    load: Load = attrs.field(factory=lambda: Load(0, 0))

    @classmethod
    async def spawn(
        cls, index: int, options: argparse.Namespace, receive: Callable[["WorkerHandle", Any], None], lost: Callable[["WorkerHandle"], None]
    ) -> "WorkerHandle":
        ours, theirs = socket.socketpair()
        handed, taken = socket.socketpair()
        for end in (ours, theirs, handed, taken):
            end.setblocking(False)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, taken, options), daemon=True)
        process.start()
        theirs.close()
        taken.close()
        handle = cls(index, process, handed)
        handle.channel = await Channel.open(ours, messages.FromWorker, lambda message: receive(handle, message), lambda: lost(handle))
        handle.channel.listen()
        return handle

    @property
    def connections(self) -> int:
        """Open there, and on their way."""
        return self.load.open + self.given - self.load.taken

    def hand(self, connection: socket.socket) -> bool:
        """Give it an accepted connection; False if it has too many on their way."""
        try:
            socket.send_fds(self.handed, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self.given += 1
        return True

    def part(self) -> None:
        """Hand it nothing more. The connections that it has been handed arrive there before it learns of this."""
        self.parting = True
        with suppress(OSError):
            self.handed.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(STOP_SECONDS)
        self.handed.close()
        self.channel.close()
