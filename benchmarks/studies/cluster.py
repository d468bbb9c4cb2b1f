"""`python -m benchmarks cluster`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_out, keep, say
from benchmarks.robustness import cluster

NAME = "cluster"
HELP = "measure replicas on a local Ray Serve with simulated engines: throughput, fairness, overhead"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_out(command)


def run(given: Arguments) -> int:
    found = asyncio.run(cluster.measure(say))
    print(cluster.conclude(found))
    keep(found, given.out)
    return 0
