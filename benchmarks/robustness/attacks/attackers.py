"""The kinds of attackers; each attacks until a given time and counts the server's answers."""

import asyncio
import socket
import time
from collections import Counter
from contextlib import suppress
from typing import Protocol, Self

import attrs

from benchmarks.robustness.attacks.inputs import ORDINARY, ordinary, post

# How long an attacker waits for an answer or keeps an unfinished request open: twice the server's
# 30 s for a body.
ANSWER_SECONDS = 60.0
# The simulated engine generates a slow reader's answer in 20 s, and the reader takes 48 s.
READER_SECONDS = 300.0
PIECE = 2**16
# Bytes that a slow reader's kernel accepts before the reader does.
RECEIVE_BUFFER = 2**16
NO_ANSWER, LOST, WHOLE, CUT, ENDED, STILL_OPEN = "no answer", "connection lost", "whole", "cut off", "ended by the server", "still open"


@attrs.define
class AttackCounts:
    """Number of each answer (an HTTP status or a text), and the longest duration in seconds."""

    answers: Counter[str] = attrs.field(factory=Counter)
    longest: float = 0.0

    def count(self, answer: str, began: float) -> None:
        self.answers[answer] += 1
        self.longest = max(self.longest, time.perf_counter() - began)


class Attack(Protocol):
    async def attack(self, host: str, port: int, until: float, tally: AttackCounts) -> None:
        """Run one attacker until `until` (perf_counter); it may finish what is open then."""

    @property
    def control(self) -> "Attack | None":
        """The same load without malice, if any: its effect on the canary is the machine's."""


@attrs.frozen
class Post:
    """Repeatedly posts one body on a new connection, and discards the answer."""

    path: str
    body: bytes
    pause: float = 0.0

    @property
    def control(self) -> Self | None:
        return type(self)("/v1/completions", ordinary(max(len(self.body), len(ORDINARY))), self.pause)

    async def attack(self, host: str, port: int, until: float, tally: AttackCounts) -> None:
        request = post(self.path, self.body)
        while time.perf_counter() < until:
            began = time.perf_counter()
            tally.count(await answer(host, port, request), began)
            await asyncio.sleep(self.pause)


@attrs.frozen
class SlowReader:
    """Posts a body and reads the answer at a steady rate in bytes per second."""

    path: str
    body: bytes
    rate: float
    control: None = None

    async def attack(self, host: str, port: int, until: float, tally: AttackCounts) -> None:
        """Attack once, regardless of `until`."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(READER_SECONDS):
                tally.count(await self._ask(host, port), began)
        except TimeoutError:
            tally.count(NO_ANSWER, began)
        except (OSError, EOFError):
            tally.count(CUT, began)

    async def _ask(self, host: str, port: int) -> str:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=RECEIVE_BUFFER)
        try:
            writer.write(post(self.path, self.body))
            head = await reader.readuntil(b"\r\n\r\n")
            status, length = head.split()[1].decode(), head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            read = await self._read(reader)
            if status != "200":
                return status
            return WHOLE if not length or read == int(length) else CUT
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> int:
        read, began = 0, time.perf_counter()
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                read += len(piece)
                await asyncio.sleep(read / self.rate - (time.perf_counter() - began))
        return read


@attrs.frozen
class Unfinished:
    """Sends a request without its end and waits until the server closes the connection."""

    request: bytes
    control: None = None

    async def attack(self, host: str, port: int, until: float, tally: AttackCounts) -> None:
        """Attack once, regardless of `until`."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(self.request)
                    while await reader.read(PIECE):
                        pass
                finally:
                    writer.transport.abort()
            tally.count(ENDED, began)
        except TimeoutError:
            tally.count(STILL_OPEN, began)
        except OSError:
            tally.count(ENDED, began)


async def answer(host: str, port: int, request: bytes) -> str:
    """Return the status of a complete answer, or what happened instead."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                status = (await reader.readline()).split()
                while await reader.read(PIECE):
                    pass
                return status[1].decode() if len(status) > 1 else LOST
            finally:
                writer.transport.abort()
    except TimeoutError:
        return NO_ANSWER
    except OSError:
        return LOST
