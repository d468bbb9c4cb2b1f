"""What the process that holds the engine's client costs: ours and vLLM's own, over the same stubbed engine core, alternating.

In process, `EngineManager.stream()` beside a bare `AsyncLLM.generate()` loop; over HTTP, our server beside vLLM's. Tokens a second are
those of a closed loop; CPU per token is the process's own and holds also where it shares a core with its client.
"""

import asyncio
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec
import psutil

from benchmarks import parity, stubbed
from benchmarks.fleet import Fleet, open_fleet
from benchmarks.load import Measured
from benchmarks.plan import Job, Load
from benchmarks.targets import TargetError
from benchmarks.targets.http import is_healthy
from benchmarks.workloads import Fixed, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.vllm import VLLMEngine

# Long enough that what begins and ends an answer counts for little; prompt and answer fit the bundled model's context.
PROMPT_TOKENS, ANSWER_TOKENS = 16, 1024
VOCABULARY = (2000, 20_000)
START_SECONDS = 180.0
SERVERS = {
    "llmserve, HTTP": ["frontends.aiohttp_app", "--max-running", "0"],
    # What our engine arguments are on a machine without a GPU, so that both make the same of it.
    "vLLM, HTTP": [
        "vllm.entrypoints.openai.api_server",
        "--enforce-eager",
        "--max-model-len",
        "2048",
        "--kv-cache-memory-bytes",
        "1073741824",
    ],
}


class Leg(msgspec.Struct):
    """One side in one round."""

    tokens_per_second: float
    cpu_microseconds_per_token: float


Side = Callable[[int], Awaitable[Leg]]


@asynccontextmanager
async def inprocess_sides(streams: int) -> AsyncIterator[dict[str, Side]]:
    """Both on the one AsyncLLM of this process."""
    stubbed.install(streams)
    engine = VLLMEngine("bundled", {})
    async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        workload = parity.Workload(requests=streams, concurrency=streams, prompt_words=PROMPT_TOKENS, max_tokens=ANSWER_TOKENS, seed=1)
        generators = {
            "vLLM, in process": parity.bare(engine.running_llm, workload),
            "llmserve, in process": parity.managed(manager, workload),
        }

        def side(generate: Callable[[str], Awaitable[int]]) -> Side:
            async def run(number: int) -> Leg:
                cpu = time.process_time()
                rate = await parity.closed_loop(workload.prompts(number), streams, generate)
                return Leg(rate, (time.process_time() - cpu) / (streams * ANSWER_TOKENS) * 1e6)

            return run

        yield {name: side(generate) for name, generate in generators.items()}


@asynccontextmanager
async def server(command: list[str], streams: int) -> AsyncIterator[tuple[str, psutil.Process]]:
    """A server module over the stubbed core, in a process of its own: its URL, and it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = [] if command[0].startswith("frontends") else ["--model", await _bundled(), "--served-model-name", "bundled"]
    arguments = [sys.executable, "-m", "benchmarks.stubbed", str(streams), *command, "--host", "127.0.0.1", "--port", str(port), *model]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        with anyio.fail_after(START_SECONDS):
            while True:
                if await is_healthy(url):
                    break
                if process.returncode is not None:
                    raise TargetError(f"{' '.join(arguments[2:])} ended with {process.returncode}")
                await anyio.sleep(0.5)
        yield url, psutil.Process(process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _bundled() -> str:
    from llmserve.models import resolve

    return await anyio.to_thread.run_sync(resolve, "bundled")


def http_side(fleet: Fleet, process: psutil.Process, streams: int) -> Side:
    workload = Workload(prompt=Fixed(PROMPT_TOKENS), output=Fixed(ANSWER_TOKENS), vocabulary=VOCABULARY)

    async def run(number: int) -> Leg:
        measured, before = Measured(), process.cpu_times()
        job = Job(point=0, label=f"leg {number}", load=Load(concurrency=streams), workload=workload, requests=streams)
        await fleet.run(job, measured, lambda _: None)
        after = process.cpu_times()
        failed = [record for record in measured.records if record.outcome != "ok"]
        if failed:
            raise TargetError(f"{len(failed)} of {streams} requests failed: {failed[0].outcome}, {failed[0].detail}")
        tokens = sum(record.completion_tokens for record in measured.records)
        seconds = max(record.finished or 0.0 for record in measured.records)
        return Leg(tokens / seconds, (after.user + after.system - before.user - before.system) / tokens * 1e6)

    return run


async def measure(streams: int, rounds: int, *, http: bool, report: Callable[[str], None]) -> dict[str, list[Leg]]:
    """Each side once a round, in turns, after a round that does not count."""
    found: dict[str, list[Leg]] = {}
    groups = [inprocess_sides(streams)] + ([http_sides(streams)] if http else [])
    for group in groups:
        async with group as sides:
            for number in range(rounds + 1):
                order = list(sides) if number % 2 else list(sides)[::-1]
                for name in order:
                    leg = await sides[name](number)
                    word = f"round {number} of {rounds}" if number else "warm-up"
                    report(f"{word}: {name} {leg.tokens_per_second:,.0f} tokens/s, {leg.cpu_microseconds_per_token:.1f} us of CPU a token")
                    if number:
                        found.setdefault(name, []).append(leg)
    return found


@asynccontextmanager
async def http_sides(streams: int) -> AsyncIterator[dict[str, Side]]:
    """One server after another would meet the machine in different moods, so both are up, and one is idle."""
    async with AsyncExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, command in SERVERS.items():
            url, process = await stack.enter_async_context(server(command, streams))
            fleet = await stack.enter_async_context(open_fleet(url, "bundled", 1))
            sides[name] = http_side(fleet, process, streams)
        yield sides


def conclude(found: dict[str, list[Leg]]) -> str:
    """Markdown: medians with their range, and ours over vLLM's in the same round."""
    lines = ["| | tokens/s | us of CPU a token |", "|---|---|---|"]
    for name, legs in found.items():
        cells = [_range([leg.tokens_per_second for leg in legs], 0), _range([leg.cpu_microseconds_per_token for leg in legs], 1)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    lines.append("")
    for way in ("in process", "HTTP"):
        ours, theirs = found.get(f"llmserve, {way}"), found.get(f"vLLM, {way}")
        if ours and theirs:
            ratios = [one.tokens_per_second / other.tokens_per_second for one, other in zip(ours, theirs, strict=True)]
            lines.append(f"{way}: {_range(ratios, 2)} times vLLM's tokens/s")
    return "\n".join(lines)


def _range(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
