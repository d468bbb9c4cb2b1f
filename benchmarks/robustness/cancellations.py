"""Cancels requests at random moments, in process and over wires: `python -m benchmarks cancels`.

Reports what the cancelled requests leave behind, and how soon the engine is notified of a client
that disconnects. Half of the requests are cancelled, at a moment anywhere between their arrival and
their last token; the others are answered first.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp
import anyio
import attrs
import msgspec

from benchmarks.targets import TargetError
from benchmarks.targets.local_server import connect, serve_here, serve_sockets_here
from llmserve import CancellationToken, EngineManager, GenerationRequest, LLMServeError, Sampling, Timeline

TOKENS = 8
# The longest wait for a request, at first. It shrinks after each request that was answered and
# grows after each that was cancelled. So half of the requests are cancelled, at any moment of their
# lives.
FIRST_SECONDS = 0.02
STEP = 1.01
SETTLE_SECONDS = 30.0


class Left(msgspec.Struct, kw_only=True):
    """Requests in process or over one wire: how they ended for their callers, and what remained.

    Attributes:
        over: What was still held after all requests had ended.
    """

    way: str
    seconds: float
    ends: dict[str, int]
    over: dict[str, float]


class Heard(msgspec.Struct, kw_only=True):
    """Seconds from a client's disconnect until the engine is notified."""

    clients: int
    p50: float
    p99: float
    longest: float


class Asker(Protocol):
    """A manager, or a client of one."""

    async def generate(self, request: GenerationRequest, token: CancellationToken | None = None) -> Any:
        """Raises LLMServeError."""


@attrs.define
class OverHTTP:
    """Whole answers and streams in turn. HTTP has no cancellation tokens: a client disconnects."""

    session: aiohttp.ClientSession
    _number: int = 0

    async def generate(self, request: GenerationRequest, token: CancellationToken | None = None) -> None:
        self._number += 1
        sampling = request.sampling
        body = {
            "prompt": request.prompt,
            "max_tokens": sampling.max_tokens,
            "ignore_eos": sampling.ignore_eos,
            "stream": self._number % 2 > 0,
        }
        async with self.session.post("/generate", json=body) as response:
            text = await response.text()
            if response.status != HTTPStatus.OK or (body["stream"] and "[DONE]" not in text):
                raise LLMServeError(f"{response.status}: {text[:200]}")


class Ends:
    """An observer that counts requests that end twice, because those release something twice."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.twice = 0

    def tokens(self, timeline: Timeline, count: int, now: float) -> None:
        """Do nothing."""

    def finished(self, timeline: Timeline) -> None:
        self.twice += timeline.request_id in self._seen
        self._seen.add(timeline.request_id)


async def leave(asker: Asker, count: int, at_once: int, seed: int, report: Callable[[int], None]) -> dict[str, int]:
    """Cancel requests, half by a token and half by their task, and count how they end."""
    rng = random.Random(f"cancels {seed}")
    longest = FIRST_SECONDS
    ends: Counter[str] = Counter()
    numbers = iter(range(count))

    async def client() -> None:
        nonlocal longest
        for number in numbers:
            token = CancellationToken()
            task = asyncio.create_task(_ask(asker, f"{seed} {number}", token))
            done, _ = await asyncio.wait([task], timeout=rng.random() * longest)
            longest *= 1 / STEP if done else STEP
            if number % 2 and not isinstance(asker, OverHTTP):
                token.cancel("enough")
            else:
                task.cancel()
            await asyncio.wait([task])
            ends["task cancelled" if task.cancelled() else task.result()] += 1
            if number % 1000 == 999:
                report(number + 1)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return dict(ends)


async def _ask(asker: Asker, name: str, token: CancellationToken | None = None) -> str:
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)
    try:
        await asker.generate(GenerationRequest("Once upon a time", request_id=name, sampling=sampling), token)
    except LLMServeError as error:
        return type(error).__name__
    return "answered"


async def _left_over(manager: EngineManager, name: str) -> dict[str, float]:
    """Return what the manager still holds after all requests have settled."""
    with anyio.move_on_after(SETTLE_SECONDS):
        while manager.statistics().open:  # noqa: ASYNC110 - a figure has no event
            await asyncio.sleep(0.01)
    # The engine reports at a step, and needs one more step to show what is left.
    await _ask(manager, name)
    statistics = manager.statistics()
    engine = statistics.engine
    return {
        "open": statistics.open,
        "running": statistics.running,
        "waiting": statistics.waiting,
        "in the engine": engine.running + engine.waiting,
        "KV cache": engine.kv_usage,
    }


async def go_away(manager: EngineManager, count: int, at_once: int) -> Heard:
    """Disconnect HTTP clients after a stream's first event; time the engine's notification."""
    heard: dict[str, float] = {}
    abort = manager.engine.abort

    async def noted(request_id: str) -> None:
        heard[request_id] = time.perf_counter()
        await abort(request_id)

    manager.engine.abort = noted  # type: ignore[method-assign]  # it records each abort and calls the real one
    gone: dict[str, float] = {}
    numbers = iter(range(count))
    try:
        async with serve_here(manager, "model") as url:
            port = int(url.rsplit(":", 1)[1])

            async def client() -> None:
                for _ in numbers:
                    await _come_and_go(port, gone)

            await asyncio.gather(*(client() for _ in range(at_once)))
            with anyio.fail_after(SETTLE_SECONDS):
                while not gone.keys() <= heard.keys():  # noqa: ASYNC110 - nor has it
                    await asyncio.sleep(0.01)
    except TimeoutError:
        raise TargetError(f"the requests of {len(gone.keys() - heard.keys())} of {count} clients were never aborted") from None
    finally:
        manager.engine.abort = abort  # type: ignore[method-assign]  # the real one again
    delays = sorted(heard[name] - at for name, at in gone.items())
    return Heard(clients=count, p50=delays[len(delays) // 2], p99=delays[int(0.99 * len(delays))], longest=delays[-1])


async def _come_and_go(port: int, gone: dict[str, float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 1000, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    name = next(line.split(b":", 1)[1].strip().decode() for line in answer.split(b"\r\n") if line.lower().startswith(b"x-request-id"))
    await reader.readuntil(b"data:")
    gone[name] = time.perf_counter()
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


class Cancels(msgspec.Struct, kw_only=True):
    """Cancellations in process and over each wire, and the time until the engine is notified."""

    left: list[Left]
    heard: Heard


@attrs.frozen
class Counts:
    """How many requests to send.

    Attributes:
        inside: Requests in process.
        wires: Requests over each wire.
        clients: Clients that disconnect over HTTP.
        at_once: Concurrency.
    """

    inside: int
    wires: int
    clients: int
    at_once: int
    seed: int


async def measure(manager: EngineManager, counts: Counts, ends: Ends, report: Callable[[int], None]) -> Cancels:
    """Run all parts; `ends` must observe the manager."""
    async with manager:
        ways: list[tuple[str, int, AbstractAsyncContextManager[Asker]]] = [("in process", counts.inside, nullcontext(manager))]
        if counts.wires:
            ways += [("over HTTP", counts.wires, _over_http(manager)), ("over frames", counts.wires, _over_frames(manager))]
        left = []
        for number, (way, count, opening) in enumerate(ways):
            async with opening as asker:
                began = time.perf_counter()
                seen = await leave(asker, count, counts.at_once, counts.seed * len(ways) + number, report)
                seconds = time.perf_counter() - began
                over = await _left_over(manager, f"the last {way}") | {"ended twice": float(ends.twice)}
            left.append(Left(way=way, seconds=seconds, ends=seen, over=over))
        return Cancels(left=left, heard=await go_away(manager, counts.clients, counts.at_once))


@asynccontextmanager
async def _over_http(manager: EngineManager) -> AsyncIterator[Asker]:
    async with serve_here(manager, "model") as url, aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield OverHTTP(session)


@asynccontextmanager
async def _over_frames(manager: EngineManager) -> AsyncIterator[Asker]:
    async with serve_sockets_here(manager, "model", ["tcp://127.0.0.1:0"]) as (address,), connect(address) as client:
        yield client


def conclude(found: Cancels) -> str:
    lines = []
    for left in found.left:
        over = {name: value for name, value in left.over.items() if value}
        ends = ", ".join(f"{count:,} {name}" for name, count in sorted(left.ends.items()))
        rest = f"left over: {over}" if over else "nothing is left over, no request ended twice"
        lines.append(f"{left.way}: {sum(left.ends.values()):,} in {left.seconds:.1f} s: {ends}; {rest}")
    heard = found.heard
    times = f"{heard.p50 * 1e3:.1f} ms, p99 {heard.p99 * 1e3:.1f} ms, at most {heard.longest * 1e3:.1f} ms"
    return "\n".join([*lines, f"{heard.clients:,} clients disconnected: the engine is notified after {times}"])
