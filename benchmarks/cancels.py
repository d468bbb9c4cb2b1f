"""Requests that are left at random moments, in process and over HTTP: `python -m benchmarks cancels`. What is left behind, and how soon the
engine has heard of a client that went away.

Moments are drawn over somewhat more than a whole request takes, so that some are left before they are admitted and some are answered first.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import anyio
import msgspec

from benchmarks.targets import TargetError
from benchmarks.targets.here import serve_here
from llmserve import CancellationToken, EngineManager, GenerationRequest, LLMServeError, Sampling

TOKENS = 8
# Of the time that a request takes beside the others.
LONGEST = 1.2
SETTLE_SECONDS = 30.0


class Left(msgspec.Struct, kw_only=True):
    """`ends` of requests by what their callers saw; `over` what was still held when all of them had ended."""

    seconds: float
    ends: dict[str, int]
    over: dict[str, float]


class Heard(msgspec.Struct, kw_only=True):
    """Seconds from a client's going until the engine was told, of so many."""

    clients: int
    p50: float
    p99: float
    longest: float


async def leave(manager: EngineManager, count: int, at_once: int, seed: int, report: Callable[[int], None]) -> Left:
    """In process: half of them by a token, half by their task's cancellation."""
    rng = random.Random(f"cancels {seed}")
    began = time.perf_counter()
    await asyncio.gather(*(_ask(manager, f"typical {number}") for number in range(at_once)))
    longest = LONGEST * (time.perf_counter() - began)
    ends: Counter[str] = Counter()
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            token = CancellationToken()
            task = asyncio.create_task(_ask(manager, f"{number}", token))
            await asyncio.wait([task], timeout=rng.random() * longest)
            if number % 2:
                token.cancel("enough")
            else:
                task.cancel()
            await asyncio.wait([task])
            ends["task cancelled" if task.cancelled() else task.result()] += 1
            if number % 1000 == 999:
                report(number + 1)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return Left(seconds=time.perf_counter() - began, ends=dict(ends), over=await _left_over(manager))


async def _ask(manager: EngineManager, name: str, token: CancellationToken | None = None) -> str:
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)
    try:
        await manager.generate(GenerationRequest("Once upon a time", request_id=name, sampling=sampling), token)
    except LLMServeError as error:
        return type(error).__name__
    return "answered"


async def _left_over(manager: EngineManager) -> dict[str, float]:
    """After everything that takes its time has had it."""
    with anyio.move_on_after(SETTLE_SECONDS):
        while manager.statistics().open:  # noqa: ASYNC110 - a figure has no event
            await asyncio.sleep(0.01)
    # An engine tells at a step, and it takes one more to show what it has left.
    await _ask(manager, "the last")
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
    """Over HTTP: clients that read the first event of a stream and are gone."""
    heard: dict[str, float] = {}
    abort = manager.engine.abort

    async def noted(request_id: str) -> None:
        heard[request_id] = time.perf_counter()
        await abort(request_id)

    manager.engine.abort = noted  # type: ignore[method-assign]
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
        raise TargetError(f"{len(gone.keys() - heard.keys())} of {count} clients' requests were never aborted") from None
    finally:
        manager.engine.abort = abort  # type: ignore[method-assign]
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
    """In process, and over HTTP."""

    left: Left
    heard: Heard


async def measure(manager: EngineManager, count: int, clients: int, at_once: int, seed: int, report: Callable[[int], None]) -> Cancels:
    async with manager:
        left = await leave(manager, count, at_once, seed, report)
        return Cancels(left=left, heard=await go_away(manager, clients, at_once))


def conclude(found: Cancels) -> str:
    """What a person wants to know."""
    left, heard = found.left, found.heard
    over = {name: value for name, value in left.over.items() if value}
    ends = ", ".join(f"{count} {name}" for name, count in sorted(left.ends.items()))
    times = f"{heard.p50 * 1e3:.1f} ms, p99 {heard.p99 * 1e3:.1f} ms, at most {heard.longest * 1e3:.1f} ms"
    lines = [
        f"{sum(left.ends.values())} in {left.seconds:.1f} s: {ends}",
        f"left over: {over}" if over else "nothing is left over",
        f"{heard.clients} clients that went away: the engine heard of it after {times}",
    ]
    return "\n".join(lines)
