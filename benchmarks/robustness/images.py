"""The event loop's lag while many images are prepared: `python -m benchmarks images`."""

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

from llmserve import EngineManager, GenerationRequest, Image, Sampling

KINDS = ("JPEG", "PNG", "WEBP")
# Seconds between two looks at the clock, and of the quiet phase.
TICK = 1e-3
QUIET = 2.0
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


def file_of(kind: str, side: int) -> bytes:
    """Return a square image of a kind. It has noise in each channel, so it compresses badly."""
    from PIL import Image as Pixels

    out = io.BytesIO()
    # Noise of single pixels would make a file that no camera makes.
    coarse = [Pixels.effect_noise((side // 2, side // 2), 60) for _ in range(3)]
    Pixels.merge("RGB", coarse).resize((side, side)).save(out, kind)
    return out.getvalue()


def distinct(data: bytes, number: int) -> bytes:
    """Return a file with the same image that no cache takes for the same."""
    # Readers ignore bytes after an image's end. The container of WebP has an even length.
    return data + number.to_bytes(8)


async def measure(manager: EngineManager, count: int, megapixels: float, kinds: Sequence[str], say: Callable[[str], None]) -> Images:
    """Send `count` images of each kind at once."""
    side = round((megapixels * 1e6) ** 0.5)
    async with manager:
        # The first image takes the time of imports and warming up.
        await _ask(manager, file_of("PNG", 64))
        found = [(await _watched(anyio.sleep, QUIET))[0]]
        for kind in kinds:
            data = await anyio.to_thread.run_sync(file_of, kind, side)
            say(f"{count} {kind} images of {side} x {side} pixels, {len(data):,} bytes each")
            lag, tokens = await _watched(_all_at_once, manager, [distinct(data, number) for number in range(count)])
            lag.kind, lag.file_bytes, lag.prompt_tokens = kind, len(data), tokens
            found.append(lag)
    return Images(count=count, pixels=side * side, found=found)


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
    lines = [
        f"{images.count} images of {images.pixels / 1e6:.1f} megapixels at once; the event loop's lag in milliseconds,",
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
