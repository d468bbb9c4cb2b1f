"""The variants that `overhead` compares: our paths to an engine and vLLM's.

They run over an engine core that is stubbed, null or real, or over an engine that does no work.
Servers are separate processes. All of them run during the measurement, and all but one are idle.
"""

import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec

from benchmarks.generator.processes import Fleet, open_fleet
from benchmarks.generator.run import Generator, Measured
from benchmarks.host_cost.server_processes import MODEL, Server, Setting, open_server
from benchmarks.recording.results import RequestRecord
from benchmarks.stand_ins import stub_core
from benchmarks.stand_ins.null_engine import NoEngine
from benchmarks.targets import Target, TargetError
from benchmarks.targets.bare import Bare
from benchmarks.targets.inprocess import InProcess
from benchmarks.targets.server import ClientOptions, Prompts
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.vllm.engine import VLLMEngine


class Trial(msgspec.Struct, kw_only=True):
    """One variant in one round; TTFT in seconds.

    Attributes:
        cpu_microseconds_per_token: CPU time of the host's processes, without the engine's.
        failed: Number of failed requests, which no other figure includes.
        failure: How the first failed request ended.
    """

    tokens_per_second: float
    cpu_microseconds_per_token: float
    ttft_p50: float
    ttft_p99: float
    tokens_per_event: float = 1.0
    # 99th percentile over all streams of a stream's longest pause between two events, in seconds.
    gap_p99: float = 0.0
    failed: int = 0
    failure: str = ""


Side = Callable[[int, int], Awaitable[Trial]]


# Variants in this process, and the others with their server and the path to it.
IN_PROCESS = ("bare", "inprocess")
WAYS: dict[str, tuple[str, str]] = {
    "http": ("llmserve", "http"),
    "chat": ("llmserve", "chat"),
    "http-unheld": ("llmserve-unheld", "http"),
    "tcp": ("llmserve-socket", "tcp"),
    "unix": ("llmserve-socket", "unix"),
    "joined": ("joined", "http"),
    "vllm": ("vllm", "http"),
    "vllm-chat": ("vllm", "chat"),
    "vllm-rust": ("vllm-rust", "http"),
    "vllm-rust-chat": ("vllm-rust", "chat"),
    "pool": ("llmserve-pool", "http"),
    "direct": ("llmserve-direct", "http"),
    "vllm-dp": ("vllm-dp", "http"),
    "vllm-rust-dp": ("vllm-rust-dp", "http"),
    "cluster": ("cluster", "http"),
}
# Text prompts, so that each server tokenises; on our raw socket token ids.
PROMPTS: dict[str, Prompts] = {"http": "text", "chat": "chat", "tcp": "ids", "unix": "ids"}
# Variants that may have several processes, and those with a number of engines before that of the
# processes. `direct` has a server for each engine, and is loaded at all of them at the same time.
MANY = ("http", "http-unheld", "chat", "joined", "vllm", "vllm-chat")
ENGINES = ("pool", "direct", "vllm-dp", "vllm-rust-dp")
CLUSTER = "cluster"
CHOICES = (
    f"{', '.join([*IN_PROCESS, *WAYS])}, with :PROCESSES after {', '.join(MANY)}, :ENGINES:PROCESSES after {', '.join(ENGINES)}, "
    f"and :REPLICAS:WORKERS:INGRESSES after {CLUSTER}"
)


def parse_side(name: str) -> tuple[str, str]:
    """Return server and path; `http:4` has four processes, `pool:2:8` two engines too. Raises TargetError."""
    kind, *counts = name.split(":")
    expected = (3,) if kind == CLUSTER else (2,) if kind in ENGINES else (0, 1) if kind in MANY else (0,)
    if kind not in WAYS or len(counts) not in expected or not all(count.isdigit() and int(count) for count in counts):
        raise TargetError(f"unknown variant {name!r}; choose from {CHOICES}")
    server, way = WAYS[kind]
    return ":".join([server, *counts]), way


def _servers(server: str) -> list[str]:
    """Return the servers that a variant loads at the same time."""
    kind, *counts = server.split(":")
    if kind != "llmserve-direct":
        return [server]
    return [f"llmserve-of-{counts[0]}:{number}:{counts[1]}" for number in range(int(counts[0]))]


def parse_sides(names: Sequence[str], setting: Setting) -> dict[str, tuple[str, str]]:
    """Return server and path of each name that needs a server.

    Raises TargetError for names that `setting`'s engine core cannot serve.
    """
    servers = {name: parse_side(name) for name in names if name not in IN_PROCESS}
    if "bare" in names and setting.core == "nothing":
        raise TargetError("bare is vLLM's own loop and needs vLLM's engine core (stubbed, null or real)")
    for server, _ in servers.values():
        if server.startswith("vllm") and setting.core == "nothing":
            raise TargetError(f"{server} is vLLM's own server and needs vLLM's engine core (stubbed, null or real)")
        outside = server.startswith(("joined", "vllm-rust")) or server.partition(":")[2] not in ("", "1")
        if outside and setting.core in ("stubbed", "nothing"):
            raise TargetError(f"{server} needs an engine core that is a process (null or real)")
    return servers


@asynccontextmanager
async def open_sides(names: Sequence[str], setting: Setting, streams: int) -> AsyncIterator[dict[str, Side]]:
    """Open all variants.

    `streams` is the maximum number of streams; a stubbed core needs exactly this number. Raises
    TargetError, for a wrong combination before anything is started.
    """
    servers = parse_sides(names, setting)
    async with AsyncExitStack() as stack:
        sides: dict[str, Side] = {}
        wanted = dict.fromkeys(server for name, _ in servers.values() for server in _servers(name))
        starting = {server: await stack.enter_async_context(open_server(server, setting, streams)) for server in wanted}
        if set(names) & set(IN_PROCESS):
            sides |= await stack.enter_async_context(_in_process(names, setting, streams))
        for process in starting.values():
            await process.until_healthy()
        for name, (server, way) in servers.items():
            processes = [starting[one] for one in _servers(server)]
            generators = max(1, setting.processes // len(processes))
            options = ClientOptions(prompts=PROMPTS[way])
            fleets = [
                await stack.enter_async_context(open_fleet(process.addresses[way], MODEL, generators, options)) for process in processes
            ]
            sides[name] = _server_side(fleets, processes, setting)
        yield {name: sides[name] for name in names}


@asynccontextmanager
async def _in_process(names: Sequence[str], setting: Setting, streams: int) -> AsyncIterator[dict[str, Side]]:
    """Open the variants on the one engine of this process."""
    if setting.core == "stubbed":
        stub_core.install(streams)
    engine = NoEngine(" word") if setting.core == "nothing" else VLLMEngine(setting.model, setting.args_of_ours)
    async with EngineManager(engine, ManagerConfig(admission=AdmissionConfig(max_running=0))) as manager:
        targets: dict[str, Target] = {"inprocess": InProcess(manager)}
        if "bare" in names:
            assert isinstance(engine, VLLMEngine)
            targets["bare"] = Bare(engine.running_llm)
        yield {name: _in_process_side(target, setting) for name, target in targets.items() if name in names}


def _in_process_side(target: Target, setting: Setting) -> Side:
    async def run(streams: int, number: int) -> Trial:
        generator = Generator(target, setting.job(streams, number), clock=time.monotonic)
        generator.prepare()
        await generator.run()
        return _leg([generator.measured], generator.measured.cpu_seconds)

    return run


def _server_side(fleets: Sequence[Fleet], processes: Sequence[Server], setting: Setting) -> Side:
    """Return the load of one server, or of several at the same time, each with its part of the streams."""

    async def run(streams: int, number: int) -> Trial:
        before = sum(process.cpu_seconds() for process in processes)
        parts = [(streams + which) // len(fleets) for which in range(len(fleets))]
        # With fewer streams than servers, some have none.
        loaded = [(fleet, part) for fleet, part in zip(fleets, parts, strict=True) if part]
        found = [Measured() for _ in loaded]
        async with anyio.create_task_group() as tasks:
            for (fleet, part), measured in zip(loaded, found, strict=True):
                tasks.start_soon(fleet.run, setting.job(part, number), measured, lambda _: None)
        return _leg(found, sum(process.cpu_seconds() for process in processes) - before)

    return run


def _leg(found: Sequence[Measured], cpu_seconds: float) -> Trial:
    everything = [record for measured in found for record in measured.records]
    records = [record for record in everything if record.outcome == "ok"]
    failed = [record for record in everything if record.outcome != "ok"]
    failure = f"{failed[0].outcome}, {failed[0].detail}" if failed else ""
    if not records:
        raise TargetError(f"all {len(failed)} requests failed: {failure}")
    tokens = sum(record.completion_tokens for record in records)
    first = min(measured.origin for measured in found)
    seconds = max(measured.origin - first + max((record.finished or 0.0 for record in measured.records), default=0.0) for measured in found)
    ttfts = [(record.first_token or 0.0) - (record.dispatched or 0.0) for record in records]
    return Trial(
        tokens_per_second=tokens / seconds,
        cpu_microseconds_per_token=cpu_seconds / tokens * 1e6,
        ttft_p50=statistics.median(ttfts),
        ttft_p99=_p99(ttfts),
        tokens_per_event=tokens / sum(len(record.deliveries) for record in records),
        gap_p99=_p99([_longest_gap(record) for record in records]),
        failed=len(failed),
        failure=failure,
    )


def _longest_gap(record: RequestRecord) -> float:
    times = [at for at, _ in record.deliveries]
    return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def _p99(values: list[float]) -> float:
    return sorted(values)[-1 - len(values) // 100]
