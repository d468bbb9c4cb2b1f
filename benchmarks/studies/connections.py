"""`python -m benchmarks connections`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_out, keep, positive, say
from benchmarks.robustness import connections

NAME = "connections"
HELP = "measure the cost of idle connections and of readers that stop reading"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--idle", type=positive(int), default=10_000, help="idle connections (default: %(default)s)")
    command.add_argument(
        "--others", type=positive(int), default=1000, help="clients that read, then as many that do not (default: %(default)s)"
    )
    add_out(command)


def run(given: Arguments) -> int:
    found = asyncio.run(connections.measure(given.idle, given.others, say))
    print(connections.conclude(found))
    keep(found, given.out)
    return 0
