"""`python -m benchmarks storms`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_out, keep, positive, say
from benchmarks.robustness import storms

NAME = "storms"
HELP = "open thousands of silent, unfinished or stalled connections; report the effect on other clients"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--idle",
        type=positive(int),
        default=10_000,
        help="connections that stay idle, connect at once or reset at once (default: %(default)s)",
    )
    command.add_argument("--clients", type=positive(int), default=5000, help="clients in each slow attack (default: %(default)s)")
    add_out(command)


def run(given: Arguments) -> int:
    found = asyncio.run(storms.measure(given.idle, given.clients, say))
    print(storms.conclude(found))
    keep(found, given.out)
    return 0
