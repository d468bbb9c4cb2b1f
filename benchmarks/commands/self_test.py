"""`python -m benchmarks self-test`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_out, keep, positive
from benchmarks.sweep import generator_ceiling

NAME = "self-test"
HELP = "measure the load generator's ceiling with an engine and a server that do no work"


def add_arguments(command: argparse.ArgumentParser) -> None:
    words = "seconds of CPU time for each figure (default: %(default)s)"
    command.add_argument("--seconds", type=positive(float), default=2.0, help=words)
    add_out(command)


def run(given: Arguments) -> int:
    found = asyncio.run(generator_ceiling.measure(given.seconds, lambda line: print(line, flush=True)))
    keep(found, given.out)
    return 0
