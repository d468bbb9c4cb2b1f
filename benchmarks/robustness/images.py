"""The event loop's lag while many images are prepared: `python -m benchmarks images`."""

import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from benchmarks.robustness import image_sender
from benchmarks.robustness.image_sender import distinct
from benchmarks.targets.local_server import serve_here
from llmserve import EngineManager, GenerationRequest, Image, Sampling
from llmserve.runtime.heap import release, set_heap_aside

KINDS = ("JPEG", "PNG", "WEBP")
# Maximum bytes of a body for our server, and of a file in it as base64.
MAX_BODY = 4 * 2**20
MAX_SENT = MAX_BODY // 4 * 3 - 2**12
# Seconds between two looks at the clock, and of the quiet phase.
TICK = 1e-3
QUIET = 2.0
# Maximum bytes of a line of the process that sends.
LINE = 1000
# Linux's figures of the thread that opens it.
SCHEDULED = Path("/proc/thread-self/schedstat")


class Lag(msgspec.Struct, kw_only=True):
    """The event loop's lag while images of one kind are prepared; times are in seconds.

    Attributes:
        kind: The files' format; empty for a phase without images.
        file_bytes: Size of each file.
        lags: How much later than planned the event loop woke, for each millisecond.
        unscheduled: How much of that its thread was ready to run and had no CPU.
        seconds: From the first request to the last answer.
        prompt_tokens: The prompt's length of each request.
    """

    kind: str = ""
    file_bytes: int = 0
    lags: list[float]
    unscheduled: list[float]
    seconds: float
    prompt_tokens: int = 0


class Images(msgspec.Struct, kw_only=True):
    count: int
    pixels: int
    found: list[Lag]
    http: bool = False


def file_of(kind: str, side: int, most: int | None = None) -> bytes:
    """Return a square image of a kind, of at most `most` bytes. It has noise in each channel, so it compresses badly."""
    from PIL import Image as Pixels

    # Noise of single pixels would make a file that no camera makes.
    grain, out = 2, io.BytesIO()
    while not out.tell() or (most is not None and out.tell() > most and grain <= side):
        out = io.BytesIO()
        coarse = [Pixels.effect_noise((max(1, side // grain), max(1, side // grain)), 60) for _ in range(3)]
        Pixels.merge("RGB", coarse).resize((side, side)).save(out, kind)
        grain *= 2
    return out.getvalue()


async def measure(
    manager: EngineManager, count: int, megapixels: float, kinds: Sequence[str], say: Callable[[str], None], *, http: bool = False
) -> Images:
    """Send `count` images of each kind at once, over HTTP from another process if `http` is True."""
    side = round((megapixels * 1e6) ** 0.5)
    async with manager, AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_here(manager, "images", max_incomplete=count * MAX_BODY)) if http else None
        # The first image takes the time of imports and warming up.
        await _ask(manager, file_of("PNG", 64))
        # As the server programs do.
        set_heap_aside(manager)
        stack.callback(release, manager)
        found = [(await _watched(anyio.sleep, QUIET))[0]]
        for kind in kinds:
            data = await anyio.to_thread.run_sync(file_of, kind, side, MAX_SENT if http else None)
            say(f"{count} {kind} images of {side} x {side} pixels, {len(data):,} bytes each")
            if url is None:
                lag, tokens = await _watched(_all_at_once, manager, [distinct(data, number) for number in range(count)])
            else:
                lag, tokens = await _over_http(url, data, count)
            lag.kind, lag.file_bytes, lag.prompt_tokens = kind, len(data), tokens
            found.append(lag)
    return Images(count=count, pixels=side * side, found=found, http=http)


async def _over_http(url: str, data: bytes, count: int) -> tuple[Lag, int]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = [sys.executable, "-m", image_sender.__name__, url, file.name, str(count)]
        async with await anyio.open_process(command, stderr=None) as process:
            begin, stdout = process.stdin, process.stdout
            assert begin is not None
            assert stdout is not None
            printed = BufferedByteReceiveStream(stdout)
            # It has read the file then.
            await printed.receive_until(b"\n", LINE)

            async def send() -> bytes:
                await begin.send(b"\n")
                return await printed.receive_until(b"\n", LINE)

            lag, answer = await _watched(send)
    return lag, int(answer.split()[0])


async def _ask(manager: EngineManager, data: bytes) -> int:
    messages = [{"role": "user", "content": ["What is this?", Image(data)]}]
    request = GenerationRequest(messages=messages, sampling=Sampling(max_tokens=1), best_effort=True)
    return (await manager.generate(request)).usage.prompt_tokens


async def _all_at_once(manager: EngineManager, files: Sequence[bytes]) -> int:
    tokens: list[int] = []

    async def ask(data: bytes) -> None:
        tokens.append(await _ask(manager, data))

    async with anyio.create_task_group() as tasks:
        for data in files:
            tasks.start_soon(ask, data)
    return tokens[0]


async def _watched(work: Callable[..., Any], *arguments: Any) -> tuple[Lag, Any]:
    """Return the event loop's lag meanwhile, and the work's result."""
    lag = Lag(lags=[], unscheduled=[], seconds=0.0)

    async def tick() -> None:
        while True:
            waited, due = _unscheduled(), time.monotonic() + TICK
            await anyio.sleep(TICK)
            lag.lags.append(time.monotonic() - due)
            lag.unscheduled.append(_unscheduled() - waited)

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        result = await work(*arguments)
        lag.seconds = time.monotonic() - began
        tasks.cancel_scope.cancel()
    return lag, result


def _unscheduled() -> float:
    """Return the seconds for which this thread was ready to run and had no CPU, since its start."""
    with SCHEDULED.open() as file:
        return int(file.read().split()[1]) / 1e9


def conclude(images: Images) -> str:
    """Return the results as a table."""
    way = " over HTTP" if images.http else ""
    lines = [
        f"{images.count} images of {images.pixels / 1e6:.1f} megapixels at once{way}; the event loop's lag in milliseconds,",
        "also without the time for which its thread had no CPU, which other programs take",
        f"{'images':8} {'p50':>7} {'p99':>7} {'longest':>8} {'with a CPU':>10}",
    ]
    for one in images.found:
        ordered = sorted(one.lags)
        p50, p99, longest = (1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99, 1))
        scheduled = 1e3 * max(lag - waited for lag, waited in zip(one.lags, one.unscheduled, strict=True))
        rest = f"{one.seconds:8.1f} s {one.prompt_tokens:6d} tokens" if one.kind else ""
        lines.append(f"{one.kind or 'none':8} {p50:7.1f} {p99:7.1f} {longest:8.1f} {scheduled:10.1f} {rest}".rstrip())
    return "\n".join(lines)
