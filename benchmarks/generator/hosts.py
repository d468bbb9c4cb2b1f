"""Generator processes of other hosts: `python -m benchmarks worker` connects to the run.

Both ends know a token. Each proves it to the other by an HMAC of what both drew, so the token is
never sent, a worker loads no server for a stranger, and a stranger gets no job. What follows is
not encrypted: use a trusted network, or a tunnel.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import anyio
import attrs
import msgspec

from benchmarks.generator.messages import Link, LinkLost
from benchmarks.generator.processes import Fleet, Member
from benchmarks.targets import TargetError
from benchmarks.targets.server import ClientOptions, parse_server

TOKEN_VARIABLE = "LLMSERVE_WORKER_TOKEN"  # noqa: S105 - its name
MIN_TOKEN = 16
NONCE_BYTES = 16
HANDSHAKE_SECONDS = 10.0
# A handshake has no longer message, and no more of them are under way at once.
HANDSHAKE_BYTES, MAX_HANDSHAKES = 2000, 64
# Time for missing workers to connect, and for a worker to reach its run.
WAIT_SECONDS = 300.0
RETRY_SECONDS = 0.5

Drawn = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Challenge(msgspec.Struct, tag=True):
    """The run's first message."""

    nonce: Drawn


class Hello(msgspec.Struct, tag=True):
    """The worker's answer."""

    nonce: Drawn
    proof: bytes
    version: str
    name: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]{1,100}\Z")]


class Welcome(msgspec.Struct, tag=True):
    """The run accepts the worker."""

    proof: bytes


class Refused(msgspec.Struct, tag=True):
    """The run does not."""

    reason: Annotated[str, msgspec.Meta(max_length=500)]


CHALLENGE = msgspec.msgpack.Decoder(Challenge)
HELLO = msgspec.msgpack.Decoder(Hello)
VERDICT = msgspec.msgpack.Decoder(Welcome | Refused)


def prove(token: str, role: str, ours: bytes, theirs: bytes) -> bytes:
    """Return the proof that `role` knows the token."""
    return hmac.digest(token.encode(), role.encode() + ours + theirs, hashlib.sha256)


def read_token() -> str:
    """Return the environment's token; empty if there is none. Raises TargetError for a short one."""
    found = os.environ.get(TOKEN_VARIABLE, "")
    if found and len(found) < MIN_TOKEN:
        raise TargetError(f"{TOKEN_VARIABLE} must have at least {MIN_TOKEN} characters")
    return found


@attrs.frozen(kw_only=True)
class Listener:
    """Where a run waits for how many workers, which know its token."""

    address: tuple[str, int]
    expected: int
    token: str = attrs.field(repr=False)


@attrs.define
class WorkerPool:
    """The workers of a run: those that have connected, of as many as it expects.

    Attributes:
        version: The version that a worker must have, because the requests are made by its code.
        report: Called with a line for the user.
    """

    expected: int
    token: str
    version: str
    report: Callable[[str], None]
    wait_seconds: float = WAIT_SECONDS
    _members: list[Member] = attrs.field(factory=list)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    _handshakes: dict["asyncio.Task[None]", None] = attrs.field(factory=dict)

    async def gather(self) -> Sequence[Member]:
        """Return the workers, when all have connected. Raises TargetError after a time without them."""
        self._forget_lost()
        if self._missing:
            self.report(f"waiting for {self._missing} of {self.expected} workers")
        try:
            with anyio.fail_after(self.wait_seconds):
                while self._missing:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            words = f"only {len(self._members)} connected within {self.wait_seconds:g} s"
            raise TargetError(f"--expect-workers {self.expected}: {words}") from None
        return list(self._members)

    def fleet(self, url: str, model: str, options: ClientOptions) -> Fleet:
        """Return the workers as the generators of one server, without the secrets of this host's client.

        Raises TargetError for a URL with credentials.
        """
        if parse_server(url).credentials is not None:
            raise TargetError("the URL's user and password are not sent to workers: pass --header or --api-key to each worker")
        return Fleet(self.gather, url, model, attrs.evolve(options, api_key=None, headers={}), self.expected, replaceable=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Add the worker at a connection; close any other connection."""
        link, task = Link(reader, writer), asyncio.current_task()
        host = (writer.get_extra_info("peername") or ("gone",))[0]
        assert task is not None
        self._handshakes[task] = None
        if len(self._handshakes) > MAX_HANDSHAKES:
            # Others that say nothing must not keep workers out.
            next(iter(self._handshakes)).cancel()
        welcome = False
        try:
            # A port scanner sends what is no message, and a worker may have ended.
            with suppress(LinkLost, asyncio.CancelledError):
                welcome = await self._is_welcome(link, host)
        finally:
            del self._handshakes[task]
            if not welcome:
                link.close()

    async def _is_welcome(self, link: Link, host: str) -> bool:
        """Return whether the other end is a worker, and is now one of ours. Raises LinkLost."""
        challenge = Challenge(secrets.token_bytes(NONCE_BYTES))
        await link.send(challenge)
        hello = await link.receive(HELLO, HANDSHAKE_BYTES, HANDSHAKE_SECONDS)
        reason = self._refusal(hello, challenge)
        if reason is not None:
            self.report(f"refused a worker at {host}: {reason}")
            await link.send(Refused(reason))
            return False
        # Once it is welcome, the worker is one: no other may take its place while the message is sent.
        self._members.append(Member(link, hello.name))
        await link.send(Welcome(prove(self.token, "run", challenge.nonce, hello.nonce)))
        self.report(f"worker {hello.name} has connected from {host}")
        self._changed.set()
        return True

    def _refusal(self, hello: Hello, challenge: Challenge) -> str | None:
        if not hmac.compare_digest(hello.proof, prove(self.token, "worker", hello.nonce, challenge.nonce)):
            return f"wrong token; set {TOKEN_VARIABLE} to that of the run"
        if hello.version != self.version:
            return f"the worker has llmserve {hello.version}, and the run {self.version}"
        self._forget_lost()
        return None if self._missing else f"the run already has its {self.expected} workers"

    def _forget_lost(self) -> None:
        for member in [member for member in self._members if member.link.is_lost]:
            member.link.close()
            self._members.remove(member)

    @property
    def _missing(self) -> int:
        return self.expected - len(self._members)

    async def close(self) -> None:
        tasks = list(self._handshakes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self._members:
            await member.link.aclose()


@asynccontextmanager
async def open_pool(listener: Listener, version: str, report: Callable[[str], None]) -> AsyncIterator[WorkerPool]:
    """Listen for workers during the context; the arguments are as in `WorkerPool`. Raises TargetError."""
    pool, (host, port) = WorkerPool(listener.expected, listener.token, version, report), listener.address
    try:
        server = await asyncio.start_server(pool.accept, host, port)
    except OSError as error:
        raise TargetError(f"--workers-listen {host}:{port}: {error.strerror or error}") from error
    host, port = server.sockets[0].getsockname()[:2]
    where = f"{'THIS_HOST' if ipaddress.ip_address(host).is_unspecified else f'[{host}]' if ':' in host else host}:{port}"
    shown = "" if os.environ.get(TOKEN_VARIABLE) else f"{TOKEN_VARIABLE}={pool.token} "
    pool.report(f"on each generator host: {shown}python -m benchmarks worker --connect {where}")
    try:
        yield pool
    finally:
        server.close()
        with anyio.CancelScope(shield=True):
            await pool.close()


async def connect(address: tuple[str, int], token: str, version: str, wait_seconds: float = WAIT_SECONDS) -> Link:
    """Connect a worker to its run, and wait for the run if it has not begun.

    Raises TargetError.
    """
    where, deadline = f"{address[0]}:{address[1]}", anyio.current_time() + wait_seconds
    while True:
        try:
            link = Link(*await asyncio.open_connection(*address))
            break
        except OSError as error:
            if anyio.current_time() >= deadline:
                raise TargetError(f"no run at {where}: {error.strerror or error}") from error
            await anyio.sleep(RETRY_SECONDS)
    try:
        await _introduce(link, where, token, version)
    except BaseException:
        link.close()
        raise
    return link


async def _introduce(link: Link, where: str, token: str, version: str) -> None:
    """Prove to the run that this worker knows the token, and have it proved. Raises TargetError."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    try:
        challenge = await link.receive(CHALLENGE, HANDSHAKE_BYTES, HANDSHAKE_SECONDS)
        await link.send(Hello(nonce, prove(token, "worker", nonce, challenge.nonce), version, _own_name()))
        verdict = await link.receive(VERDICT, HANDSHAKE_BYTES, HANDSHAKE_SECONDS)
    except LinkLost as error:
        raise TargetError(f"{where} is no run that waits for workers: it {error}") from error
    if isinstance(verdict, Refused):
        raise TargetError(f"the run at {where} refuses this worker: {verdict.reason}")
    if not hmac.compare_digest(verdict.proof, prove(token, "run", challenge.nonce, nonce)):
        raise TargetError(f"{where} does not know the token, so this worker does nothing for it")


def _own_name() -> str:
    host = "".join(letter if letter.isalnum() or letter in "_.-" else "-" for letter in socket.gethostname())[:80]
    return f"{host or 'host'}-{os.getpid()}"
