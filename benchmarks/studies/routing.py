"""`python -m benchmarks routing`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arguments import Arguments, add_out, keep, numbers, positive, say
from benchmarks.overload import cost
from benchmarks.overload.routing import CONTENDERS, capacity, of_trace, play, shares, unshared
from benchmarks.overload.tables import markdown, percent
from benchmarks.overload.traffic import Request
from benchmarks.workload.traces import read_trace
from llmserve import ConfigurationError

NAME = "routing"
HELP = "simulate several engines in virtual time: our choice of the engine and the alternatives"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("traces", nargs="*", type=Path, metavar="TRACE", help="traces with ids of the prompts' blocks, such as Mooncake's")
    command.add_argument("--engines", type=positive(int), default=4, help="number of engines (default: %(default)s)")
    words = "mean rates, relative to the capacity without knowledge of prefixes (default: 0.6,0.7,0.8)"
    command.add_argument("--load", type=numbers(float), default=[0.6, 0.7, 0.8], metavar="X,X,...", help=words)
    command.add_argument("--requests", type=positive(int), metavar="N", help="only the first N requests of each workload")
    command.add_argument("--policy", choices=("fixed", "lategate"), default="fixed", help="policy of each engine (default: %(default)s)")
    words = "also the shares of four tenants with 10,000 streams on this many engines (default: none)"
    command.add_argument("--tenants-on", type=positive(int), metavar="ENGINES", help=words)
    command.add_argument("--cost", action="store_true", help="also the CPU time of an arrival with 1, 8 and 64 engines")
    add_out(command)


def run(given: Arguments) -> int:
    workloads: dict[str, Sequence[Request]] = {path.stem: _trace(path, given.requests) for path in given.traces}
    workloads["nothing shared"] = unshared(given.requests or 10_000, 1)
    rows = []
    for name, requests in workloads.items():
        most = capacity(requests, given.engines)
        for load in given.load:
            for contender in CONTENDERS:
                say(f"{name}, load {load:g}: {contender}")
                figures = play(requests, contender, given.engines, load * most, given.policy).figures()
                rows.append({"workload": name, "load": load, "rate": load * most, "router": contender, **figures})
    print(routing_table(rows))
    found: dict[str, Any] = {"rows": rows}
    if given.tenants_on:
        found["shares"] = shares(given.tenants_on, 10_000, 40_000)
        print(f"\nStarts relative to the fair share: {', '.join(f'{name} {share:.3f}' for name, share in found['shares'].items())}")
    if given.cost:
        found["pools"] = cost.pools()
        found["keys"] = {str(tokens): cost.keys(tokens) for tokens in (500, 8000)}
        print(f"\n{pools_table(found['pools'])}\n")
        print(f"Keys of a prompt: {', '.join(f'{tokens} tokens {micros:.0f} us' for tokens, micros in found['keys'].items())}")
    keep(found, given.out)
    return 0


def _trace(path: Path, limit: int | None) -> list[Request]:
    trace = read_trace(path, limit=limit)
    if not any(arrival.blocks for arrival in trace):
        raise ConfigurationError(f"{path}: the trace has no ids of blocks, so its prompts share nothing")
    return of_trace(trace, 1)


def pools_table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["policy", "load", *(f"{engines} engine{'s' * (engines > 1)}" for engines in rows[0]["micros"]), "growth"]
    lines = [
        [row["policy"], row["load"], *(f"{micros:.0f} us" for micros in row["micros"].values()), f"{row['growth']:.2f}"] for row in rows
    ]
    return markdown(head, lines)


def routing_table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["workload", "load", "requests/s", "router", "TTFT p50", "p95", "p99", "within the SLO, per s", "cache hits", "busiest engine"]
    lines = []
    for row in rows:
        latencies = [f"{row[f'ttft_p{share}'] * 1000:.0f} ms" for share in (50, 95, 99)]
        first = [row["workload"], f"{row['load']:g}", f"{row['rate']:.1f}", row["router"]]
        lines.append([*first, *latencies, f"{row['goodput']:.2f}", percent(row["hits"], 1), f"{row['balance']:.2f}"])
    return markdown(head, lines)
