"""`python -m benchmarks ceilings`.

Each tool runs as a program, with few requests and with many. The difference of the two CPU times,
of all its processes, is the time of the further requests: starting, and reading a tokenizer, cost
the same in both. CPU time does not depend on what else the machine does, as a throughput would.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import attrs
import msgspec
import psutil

from benchmarks.arguments import Arguments, add_out, keep, positive, say
from benchmarks.stand_ins.null_engine import no_server
from benchmarks.studies.truth import add_peers, find_tools
from benchmarks.targets import TargetError
from benchmarks.truth.behaviours import Behaviour
from benchmarks.truth.tools import Load, Tool, Unmeasured, version_of

NAME = "ceilings"
HELP = "compare what one core of each load generator can read from a server that does nothing"
MODEL, PROMPT_TOKENS, CONCURRENCY, PATIENCE = "nothing", 16, 64, 900.0
# The further requests must cost this share of the start, whose cost varies.
MIN_SHARE = 0.1
# What a process uses after its last sample is lost in both measurements.
SAMPLE_SECONDS = 0.2
# Each tool's settings are those for a server that counts its tokens at the end.
SERVER = Behaviour(name="nothing", does="", usage="own")


class Row(msgspec.Struct):
    """One tool: chunks, of one token each, for a second of its CPU time, by round."""

    tool: str
    version: str
    chunks_per_core_second: list[float] = []


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_peers(command)
    words = "further requests of the second measurement (default: %(default)s)"
    command.add_argument("--requests", type=positive(int), default=1000, metavar="N", help=words)
    command.add_argument("--output-tokens", type=positive(int), default=128, metavar="N", help="default: %(default)s")
    command.add_argument("--rounds", type=positive(int), default=3, metavar="N", help="default: %(default)s")
    add_out(command)


def run(given: Arguments) -> int:
    load = Load(
        model=MODEL, requests=CONCURRENCY, concurrency=CONCURRENCY, prompt_tokens=PROMPT_TOKENS,
        output_tokens=given.output_tokens, patience=PATIENCE,
    )  # fmt: skip
    tools = find_tools(given, load)
    rows = [Row(tool.name, version_of(tool)) for tool in tools]

    def report(row: Row) -> None:
        say(f"{row.tool}: {row.chunks_per_core_second[-1]:,.0f} chunks per core-second")
        keep(rows, given.out)

    try:
        asyncio.run(measure(tools, rows, load, given.requests, given.rounds, report))
    except Unmeasured as error:
        raise TargetError(str(error)) from error
    print(table(rows))
    return 0


async def measure(tools: Sequence[Tool], rows: Sequence[Row], load: Load, further: int, rounds: int, report: Callable[[Row], None]) -> None:
    """Measure all tools one after another, in each round. Raises Unmeasured."""
    async with no_server() as url:
        for _ in range(rounds):
            for tool, row in zip(tools, rows, strict=True):
                few = await cpu_seconds(tool, url, load)
                many = await cpu_seconds(tool, url, attrs.evolve(load, requests=load.requests + further))
                if many - few < MIN_SHARE * few:
                    raise Unmeasured(f"{tool.name}: {further} requests cost no more than its start varies: increase --requests")
                row.chunks_per_core_second.append(further * load.output_tokens / (many - few))
                report(row)


async def cpu_seconds(tool: Tool, url: str, load: Load) -> float:
    """Return the CPU time of a tool and its processes for a load.

    Raises Unmeasured, also if the tool did not read every answer.
    """
    spent: dict[tuple[int, float], float] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_sessions, spent)
        with tempfile.TemporaryDirectory() as folder:
            found = await attrs.evolve(tool, load=load).measure(url, SERVER, Path(folder))  # type: ignore[misc]  # each tool is an attrs class
        tasks.cancel_scope.cancel()
    if found.outcomes.get("ok", 0) < load.requests or found.tokens < load.requests * load.output_tokens:
        raise Unmeasured(f"{tool.name}: of {load.requests} requests: {found.outcomes}, with {found.tokens} tokens")
    return sum(spent.values())


async def watch_sessions(spent: dict[tuple[int, float], float]) -> None:
    """Note the CPU time of each process in the sessions of this process's children, until cancelled.

    The system's own sum has only the processes that their parents wait for, which GuideLLM's are not.
    """
    sessions: set[int] = set()
    while True:
        sessions |= {child.pid for child in psutil.Process().children()} - {os.getsid(0)}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getsid(process.pid) in sessions:
                    times = process.cpu_times()
                    spent[process.pid, process.create_time()] = times.user + times.system
        await anyio.sleep(SAMPLE_SECONDS)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table; the ratios are those of the first tool to each other one, round by round."""
    lines = ["| tool | version | chunks per core-second | llmserve's in multiples |", "|---|---|---|---|"]
    for row in rows:
        ratios = [ours / theirs for ours, theirs in zip(rows[0].chunks_per_core_second, row.chunks_per_core_second, strict=True)]
        shown = "1" if row is rows[0] else _span(ratios, ".1f")
        lines.append(f"| {row.tool} | {row.version} | {_span(row.chunks_per_core_second, ',.0f')} | {shown} |")
    return "\n".join(lines)


def _span(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
