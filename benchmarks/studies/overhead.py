"""`python -m benchmarks overhead`."""

import argparse
import asyncio

from benchmarks.arguments import keep, say
from benchmarks.host_cost import overhead
from benchmarks.sweep import options

NAME = "overhead"
HELP = "measure the host CPU time per token, beside vLLM's own server"


def add_arguments(command: argparse.ArgumentParser) -> None:
    options.add_overhead(command)


def run(given: argparse.Namespace) -> int:
    names, setting = options.side_names(given.sides), options.side_setting(given)
    measuring = overhead.measure(names, setting, given.streams, given.rounds, say)
    found = asyncio.run(measuring)
    print(overhead.conclude(found, given.against))
    keep(found, given.out)
    return 0
