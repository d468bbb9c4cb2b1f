"""Server processes to compare: ours and vLLM's.

They run over an engine core that is stubbed, null or real, or over an engine that does no work.
"""

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import attrs
import psutil

from benchmarks.targets import TargetError
from benchmarks.targets.server import is_healthy
from benchmarks.workload.plan import Load, PointPlan
from benchmarks.workload.requests import Fixed, Workload
from llmserve.models import resolve
from llmserve.runtime.gpus import VISIBLE, visible_gpus

START_SECONDS = 300.0
STOP_SECONDS = 60.0
# Requests of a trial with few streams, whose TTFT would be that of one or two otherwise.
FEWEST = 16
# The name under which every server serves its model.
MODEL = "side"
# The default engine arguments of ours on a machine without a GPU, so that vLLM gets the same.
CPU_ARGS: dict[str, Any] = {"enforce_eager": True, "max_model_len": 2048, "kv_cache_memory_bytes": 2**30}
# For every variant over the null core. Our default on a CPU is a batch of 16; vLLM's depends on the
# machine and the entry point.
NULL_ARGS: dict[str, Any] = {
    "distributed_executor_backend": "benchmarks.stand_ins.null_executor.NullExecutor",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 1024,
    "max_num_batched_tokens": 8192,
}
# vLLM's engine processes, by their titles.
ENGINE_TITLES = ("EngineCore", "VLLM::Worker")
LAST_WORDS = 2000


@attrs.frozen(kw_only=True)
class Setting:
    """What the variants measure.

    Attributes:
        requests: Consecutive requests of each stream; more where there would be fewer than FEWEST.
        processes: Generator processes that load a server.
    """

    core: Literal["stubbed", "nothing", "null", "real", "simulated"] = "stubbed"
    # Of an engine that does no work: seconds between its steps, and each step's text.
    pace: tuple[float, str] | None = None
    model: str = "bundled"
    engine_args: dict[str, Any] = attrs.field(factory=dict)
    # Additional arguments of our servers. Comparisons admit every request.
    server_args: tuple[str, ...] = ("--max-running", "0")
    prompt_tokens: int = 16
    answer_tokens: int = 1024
    requests: int = 1
    processes: int = 1
    # The middle of the bundled model's vocabulary, which has no special tokens.
    vocabulary: tuple[int, int] = (2000, 20_000)

    @property
    def args_of_ours(self) -> dict[str, Any]:
        """Arguments of our engines; their defaults on a CPU already are CPU_ARGS."""
        return NULL_ARGS | self.engine_args if self.core == "null" else self.engine_args

    @property
    def args_of_vllm(self) -> dict[str, Any]:
        return CPU_ARGS | self.engine_args if self.core == "stubbed" else self.args_of_ours

    def job(self, streams: int, number: int) -> PointPlan:
        workload = Workload(prompt=Fixed(self.prompt_tokens), output=Fixed(self.answer_tokens), vocabulary=self.vocabulary)
        requests = streams * max(self.requests, -(-FEWEST // streams))
        return PointPlan(point=0, label=f"leg {number}", load=Load(concurrency=streams), workload=workload, requests=requests)


@attrs.frozen
class Server:
    """A running server.

    Attributes:
        addresses: Addresses by path: http and chat, or tcp and unix.
        log: File with the server's output.
    """

    addresses: dict[str, str]
    process: asyncio.subprocess.Process
    log: Path

    async def until_healthy(self) -> None:
        """Wait until the server is healthy. Raises TargetError with its last output if it ends."""
        with anyio.fail_after(START_SECONDS):
            while not await self._is_healthy():
                if self.process.returncode is not None:
                    words = self.log.read_bytes()[-LAST_WORDS:].decode(errors="replace")
                    raise TargetError(f"a server exited with code {self.process.returncode}: {words}")
                await anyio.sleep(0.5)

    async def _is_healthy(self) -> bool:
        if "http" in self.addresses:
            return await is_healthy(self.addresses["http"])
        return b"  ready  " in self.log.read_bytes()

    def cpu_seconds(self) -> float:
        """Return the CPU time of the program and its children, without the engine's processes."""
        whole = 0.0
        parent = psutil.Process(self.process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.Error):
                if not any(title in " ".join(one.cmdline()) for title in ENGINE_TITLES):
                    times = one.cpu_times()
                    whole += times.user + times.system
        return whole


@asynccontextmanager
async def open_server(name: str, setting: Setting, streams: int, *, stdout: int | None = None) -> AsyncIterator[Server]:
    """Start a server.

    `name` is "llmserve", "llmserve-socket", "joined", "vllm" or "vllm-rust", some of them with `:N`
    for N processes. With N engines and W processes it is "llmserve-pool:N:W", "vllm-dp:N:W" or
    "vllm-rust-dp:N:W"; "llmserve-of-N:K:W" is the server of engine K where each of N engines has its own server.
    "cluster:N:W:I" is a local Ray with N replicas of W processes each, behind I ingresses.
    Standard output goes to the descriptor `stdout`, or by default into the log, like standard
    error.
    """
    with tempfile.TemporaryDirectory(prefix="llmserve-side-") as folder:
        addresses = _addresses(name, folder)
        command, environment = await _command(name, setting, addresses)
        if setting.core == "nothing":
            pace = f":{setting.pace[0]}:{setting.pace[1]}" if setting.pace else ""
            command = ["benchmarks.stand_ins.stub_core", f"nothing{pace}", *command]
        elif setting.core == "stubbed":
            command = ["benchmarks.stand_ins.stub_core", str(streams), *command]
        log = Path(folder, "log")
        out = os.open(log, os.O_WRONLY | os.O_CREAT)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *command,
            stdout=out if stdout is None else stdout,
            stderr=out,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        os.close(out)
        try:
            yield Server(addresses, process, log)
        finally:
            if name.startswith("cluster"):
                # The replicas are in sessions of their own, and end their engines.
                await _terminate(process)
            # Kill the whole session, because a killed server leaves its engine behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()


async def _terminate(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    with anyio.move_on_after(STOP_SECONDS, shield=True):
        await process.wait()


def _addresses(name: str, folder: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if name == "llmserve-socket":
        return {"tcp": f"tcp://127.0.0.1:{port}", "unix": f"unix://{folder}/socket"}
    return dict.fromkeys(("http", "chat"), f"http://127.0.0.1:{port}")


async def _command(name: str, setting: Setting, addresses: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the module with its arguments, and additional environment variables."""
    kind, *counts = name.split(":")
    count, engines = counts[-1] if counts else "1", counts[0] if len(counts) > 1 else "1"
    if kind == "llmserve-socket":
        listen = [word for address in addresses.values() for word in ("--listen", address)]
        return ["frontends.socket_app", *listen, *_our_arguments(setting)], {}
    if kind == "joined":
        port = addresses["http"].rpartition(":")[2]
        return ["benchmarks.targets.relay_workers", count, "127.0.0.1", port, *_our_arguments(setting)], {}
    where = ["--host", "127.0.0.1", "--port", addresses["http"].rpartition(":")[2]]
    if kind in ("llmserve", "llmserve-unheld"):
        if kind == "llmserve-unheld":
            where += ["--max-hold", "0"]
        return ["frontends.aiohttp_app", *where, "--workers", count, *_our_arguments(setting)], {}
    if kind == "llmserve-pool":
        where += ["--workers", count, "--engines", engines]
        return ["frontends.aiohttp_app", *where, *_our_arguments(setting, _sharing(int(engines)))], {}
    if kind.startswith("llmserve-of-"):
        gpus = visible_gpus()
        place = {VISIBLE: gpus[int(engines) % len(gpus)]} if gpus else {}
        return ["frontends.aiohttp_app", *where, "--workers", count, *_our_arguments(setting)], place
    if kind == "cluster":
        return ["benchmarks.targets.cluster", *where, *_size(counts), *_our_arguments(setting)], {}
    model = await anyio.to_thread.run_sync(resolve, setting.model)
    arguments = [*where, "--served-model-name", MODEL, *_vllm_arguments(setting)]
    if setting.core == "stubbed":
        # The API server runs in one process, the one with the stubbed core.
        return ["vllm.entrypoints.openai.api_server", "--model", model, *arguments], {}
    environment = {"VLLM_USE_RUST_FRONTEND": "1"} if "rust" in kind else {}
    if "dp" in kind:
        arguments += ["--data-parallel-size", engines]
    return ["benchmarks.host_cost.vllm_serve", "serve", model, "--api-server-count", count, *arguments], environment


def _size(counts: list[str]) -> list[str]:
    """Return the arguments for the size of a cluster, whose replicas share the GPUs evenly."""
    options = zip(("--replicas", "--workers", "--ingresses"), counts, strict=True)
    gpus = min(1.0, len(visible_gpus()) / int(counts[0]))
    return [*(word for option in options for word in option), "--replica-gpus", str(gpus)]


def _sharing(engines: int) -> int:
    """Return how many of the engines share a device."""
    return -(-engines // max(1, len(visible_gpus())))


def _our_arguments(setting: Setting, sharing: int = 1) -> list[str]:
    """Return the arguments of our servers; `sharing` engines have a device together."""
    engine = ["--engine", "simulated"] if setting.core in ("nothing", "simulated") else ["--model", setting.model]
    # The memory is that of each engine here, and that of all engines of a device for a pool.
    memory = ("gpu_memory_utilization", "kv_cache_memory_bytes")
    given = {key: value * sharing if key in memory else value for key, value in setting.args_of_ours.items()}
    args = [f"--engine-arg={key}={_json(value)}" for key, value in given.items()]
    return [*setting.server_args, "--served-model-name", MODEL, *engine, *args]


def _vllm_arguments(setting: Setting) -> list[str]:
    """Return the engine arguments as vLLM's command line spells them."""
    words: list[str] = []
    for key, value in setting.args_of_vllm.items():
        flag = f"--{key.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
