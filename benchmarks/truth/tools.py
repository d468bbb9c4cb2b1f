"""The load generators that are compared: our own, and three peers where they are installed.

Each runs as a program, as its users run it, with the settings that suit the behaviour best, and the
figures come from the file that it writes.
"""

import asyncio
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import msgspec

from benchmarks.analysis.summary import summarize
from benchmarks.recording import storage
from benchmarks.truth.behaviours import TOKENS, Behaviour
from benchmarks.truth.figures import TIMES, Figures
from benchmarks.truth.script import MODEL
from llmserve.runtime.version import __version__

REQUESTS, CONCURRENCY = 16, 2
# Of the server that hangs.
TIMEOUT = "2"
ROOT = Path(__file__).parents[2]


@attrs.frozen(kw_only=True)
class Load:
    """What a tool sends: a closed loop, with answers of one length.

    Attributes:
        patience: Seconds until a tool is stopped; a peer needs 10 to 30 to start, on a machine with other work.
    """

    model: str = MODEL
    requests: int = REQUESTS
    concurrency: int = CONCURRENCY
    prompt_tokens: int = 8
    output_tokens: int = TOKENS
    patience: float = 90.0


class Unmeasured(Exception):
    """A tool measured nothing; the message says why."""


class Tool(Protocol):
    """A load generator."""

    @property
    def name(self) -> str: ...

    async def measure(self, url: str, behaviour: Behaviour, folder: Path) -> Figures:
        """Measure a server, with files in an empty folder. Raises Unmeasured."""


async def run_program(command: Sequence[object], folder: Path, environment: Mapping[str, str], patience: float) -> None:
    """Run a program to its end, with its output in `output.txt`. Raises Unmeasured."""
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=folder,
            env=environment,
        )
        try:
            code = await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            raise Unmeasured(f"does not end within {patience:.0f} s") from None
        finally:
            # The program's children too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code:
        lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if any(map(str.isalnum, line))]
        raise Unmeasured(f"exit code {code}: {lines[-1] if lines else 'no message'}"[:200])


@attrs.frozen
class Ours:
    """`python -m benchmarks run` of this checkout."""

    load: Load = Load()
    name: str = "llmserve"

    async def measure(self, url: str, behaviour: Behaviour, folder: Path) -> Figures:
        out = folder / "run.json"
        command = [sys.executable, "-m", "benchmarks", "run", "--target", url, "--model", self.load.model, "--no-ceiling", "--in-step"]
        command += [
            "--concurrency",
            str(self.load.concurrency),
            "--requests",
            str(self.load.requests),
            "--per-client",
            "1",
            "--warm-up",
            "1",
        ]
        command += ["--prompt-tokens", str(self.load.prompt_tokens), "--output-tokens", str(self.load.output_tokens), "--out", str(out)]
        command += ["--chat"] * behaviour.chat + ["--natural-lengths"] * (behaviour.lengths is not None)
        command += ["--timeout", TIMEOUT] * behaviour.hangs
        await run_program(command, folder, {**os.environ, "PYTHONPATH": str(ROOT)}, self.load.patience)
        records = storage.read(out).records
        summary = summarize(records)
        tokens = sum(record.completion_tokens for record in records if record.outcome == "ok")
        return Figures(outcomes=summary.outcomes, tokens=tokens, times={name: getattr(summary, name).at("p50") for name in TIMES})


@attrs.frozen
class GuideLLM:
    """GuideLLM, whose inter-token latency is TPOT, and whose time per output token includes TTFT."""

    program: Path
    tokenizer: str
    load: Load = Load()
    name: str = "GuideLLM"

    async def measure(self, url: str, behaviour: Behaviour, folder: Path) -> Figures:
        route = "/v1/chat/completions" if behaviour.chat else "/v1/completions"
        backend = f"kind=openai_http,target={url},model={self.load.model},request_format={route}" + f",timeout={TIMEOUT}" * behaviour.hangs
        out = folder / "out.json"
        command: list[object] = [self.program, "run", "--backend", backend, "--profile", f"kind=concurrent,streams={self.load.concurrency}"]
        command += [
            "--constraint",
            f"kind=max_requests,count={self.load.requests}",
            "--tokenizer",
            f"kind=huggingface_auto,model={self.tokenizer}",
        ]
        command += ["--data", f"kind=synthetic_text,prompt_tokens={self.load.prompt_tokens},output_tokens={self.load.output_tokens}"]
        await run_program(
            [*command, "--output", f"kind=json,path={out}", "--disable-console"], folder, own_environment(), self.load.patience
        )
        (benchmark,) = read_json(out)["benchmarks"]
        metrics, totals = benchmark["metrics"], benchmark["metrics"]["request_totals"]

        def at(name: str, of: str = "median", unit: float = 1000.0) -> float | None:
            found = metrics[name]["successful"]
            return found[of] / unit if found and found["count"] else None

        return Figures(
            outcomes={"ok": totals["successful"], "failed": totals["errored"] + totals["incomplete"]},
            tokens=round(at("output_token_count", "total_sum", 1.0) or 0),
            times={"ttft": at("time_to_first_token_ms"), "tpot": at("inter_token_latency_ms"), "e2e": at("request_latency", unit=1.0)},
        )


@attrs.frozen
class AIPerf:
    """AIPerf, whose inter-token latency is TPOT.

    It counts tokens by the server's usage where the server sends it, and else with the tokenizer.
    """

    program: Path
    tokenizer: str
    load: Load = Load()
    name: str = "AIPerf"

    async def measure(self, url: str, behaviour: Behaviour, folder: Path) -> Figures:
        command = [self.program, "profile", "--model", self.load.model, "--url", url, "--streaming", "--tokenizer", self.tokenizer]
        command += ["--endpoint-type", "chat" if behaviour.chat else "completions"]
        command += ["--concurrency", str(self.load.concurrency), "--request-count", str(self.load.requests)]
        command += ["--isl", str(self.load.prompt_tokens), "--isl-stddev", "0", "--osl", str(self.load.output_tokens), "--osl-stddev", "0"]
        command += ["--extra-inputs", "ignore_eos:true"] * (behaviour.lengths is None)
        command += ["--use-server-token-count"] * behaviour.tells_usage + ["--per-chunk-usage"] * (
            behaviour.usage == "all" and behaviour.chat
        )
        command += ["--request-timeout-seconds", TIMEOUT] * behaviour.hangs
        command += ["--no-server-metrics", "--no-gpu-telemetry", "--ui-type", "none", "--artifact-dir", folder]
        await run_program(command, folder, own_environment(), self.load.patience)
        found = read_json(folder / "profile_export_aiperf.json")

        def at(name: str, of: str = "avg", unit: float = 1.0) -> float | None:
            value = (found.get(name) or {}).get(of)
            return value / unit if value is not None else None

        return Figures(
            outcomes={"ok": round(at("request_count") or 0), "failed": round(at("error_request_count") or 0)},
            tokens=round(at("total_output_tokens") or 0),
            times={
                "ttft": at("time_to_first_token", "p50", 1000.0),
                "tpot": at("inter_token_latency", "p50", 1000.0),
                "e2e": at("request_latency", "p50", 1000.0),
            },
        )


@attrs.frozen
class VLLMBench:
    """`vllm bench serve`; it has no timeout."""

    program: Path
    tokenizer: str
    load: Load = Load()
    name: str = "vllm bench serve"

    async def measure(self, url: str, behaviour: Behaviour, folder: Path) -> Figures:
        # The module runs vLLM's command line on the CPU build too.
        command = [self.program.with_name("python"), "-m", "benchmarks.host_cost.vllm_serve", "bench", "serve", "--base-url", url]
        kind, route = ("openai-chat", "/v1/chat/completions") if behaviour.chat else ("openai", "/v1/completions")
        command += ["--backend", kind, "--endpoint", route, "--model", self.load.model, "--tokenizer", self.tokenizer]
        command += [
            "--dataset-name",
            "random",
            "--random-input-len",
            str(self.load.prompt_tokens),
            "--random-output-len",
            str(self.load.output_tokens),
        ]
        command += [
            "--num-prompts",
            str(self.load.requests),
            "--max-concurrency",
            str(self.load.concurrency),
            "--temperature",
            "0",
            "--disable-tqdm",
        ]
        command += ["--ignore-eos"] * (behaviour.lengths is None) + ["--percentile-metrics", "ttft,tpot,itl,e2el"]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "out.json"]
        await run_program(command, folder, {**own_environment(), "PYTHONPATH": str(ROOT)}, self.load.patience)
        found = read_json(folder / "out.json")
        keys = {"ttft": "median_ttft_ms", "itl": "median_itl_ms", "tpot": "median_tpot_ms", "e2e": "median_e2el_ms"}
        # It writes 0 where it measured nothing.
        times = {name: value / 1000 if math.isfinite(value := found[key]) and value > 0 else None for name, key in keys.items()}
        return Figures(outcomes={"ok": found["completed"], "failed": found["failed"]}, tokens=found["total_output_tokens"], times=times)


PEERS: dict[str, type[GuideLLM | AIPerf | VLLMBench]] = {"guidellm": GuideLLM, "aiperf": AIPerf, "vllm": VLLMBench}


def find_peer(name: str, program: Path | None, tokenizer: str, load: Load = Load()) -> Tool | None:
    """Return a peer by its program, which is else searched on PATH; None where there is none."""
    found = program or (Path(path) if (path := shutil.which(name)) else None)
    return PEERS[name](found.absolute(), tokenizer, load) if found and found.exists() else None


def version_of(tool: Tool) -> str:
    """Return a tool's version, from the packages beside its program."""
    if isinstance(tool, Ours):
        return __version__
    program: Path = tool.program  # type: ignore[attr-defined]  # every peer has one
    names = [program.name, f"{program.name}-cpu"]
    text = f"import importlib.metadata as m; print(next(d.version for n in {names} for d in m.distributions(name=n)))"
    command = [str(program.with_name("python")), "-c", text]
    # The user names the program.
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=own_environment())  # noqa: S603
    return found.stdout.strip()


def own_environment() -> dict[str, str]:
    """Return this process's environment without this checkout, so that a peer imports its own."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def read_json(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise Unmeasured(f"{path.name}: {error}"[:200]) from None
