"""`python -m benchmarks latency`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_out, keep, positive, say
from benchmarks.host_cost import latency

NAME = "latency"
HELP = "measure the latency that each path adds to a token: in process, HTTP, raw sockets"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--streams", type=positive(int), default=64, help="concurrent streams on each path (default: %(default)s)")
    command.add_argument("--requests", type=positive(int), default=64, help="requests on each path in a round (default: %(default)s)")
    command.add_argument("--rounds", type=positive(int), default=5)
    command.add_argument("--alone", action="store_true", help="measure the paths one after another, not at the same time")
    add_out(command)


def run(given: Arguments) -> int:
    found = asyncio.run(latency.measure(given.streams, given.requests, given.rounds, say, alone=given.alone))
    print(latency.conclude(found))
    keep(found, given.out)
    return 0
