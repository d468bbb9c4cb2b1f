"""`python -m benchmarks cancels`."""

import argparse
import asyncio
import sys

from benchmarks.arguments import Arguments, add_engine, add_out, keep, positive, say
from benchmarks.robustness import cancellations
from llmserve import EngineManager
from llmserve.engines.vllm.args import parse_engine_args

NAME = "cancels"
HELP = "cancel requests at random moments; report leaks and the time until the engine is notified"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command, "vllm")
    command.add_argument("--count", type=positive(int), default=2000, help="requests cancelled in process (default: %(default)s)")
    command.add_argument(
        "--wires",
        type=int,
        default=0,
        metavar="N",
        help="requests cancelled over HTTP, and as many over a raw socket (default: %(default)s)",
    )
    words = "HTTP clients that disconnect, to measure the time until the engine is notified (default: %(default)s)"
    command.add_argument("--clients", type=positive(int), default=1000, help=words)
    command.add_argument("--at-once", type=positive(int), default=32, help="concurrency (default: %(default)s)")
    command.add_argument("--seed", type=int, default=1)
    add_out(command)


def run(given: Arguments) -> int:
    ends = cancellations.Ends()
    manager = EngineManager.open(given.model, engine=given.engine, engine_args=parse_engine_args(given.engine_arg), observers=[ends])

    def report(done: int) -> None:
        print(f"\r{done:,}", end="", file=sys.stderr, flush=True)

    counts = cancellations.Counts(inside=given.count, wires=given.wires, clients=given.clients, at_once=given.at_once, seed=given.seed)
    found = asyncio.run(cancellations.measure(manager, counts, ends, report))
    say("")
    print(cancellations.conclude(found))
    keep(found, given.out)
    return int(any(any(left.over.values()) for left in found.left))
