"""`python -m benchmarks sample`."""

import argparse
import pathlib

from benchmarks.analysis import report
from benchmarks.arguments import positive
from benchmarks.recording import storage

NAME = "sample"
HELP = "write a small copy of a run: a random sample of its requests, and the figures of all of them"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=pathlib.Path, metavar="FILE.json")
    command.add_argument("--requests", type=positive(int), default=20, metavar="N", help="for each point (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE.json")


def run(given: argparse.Namespace) -> int:
    storage.write(given.out, report.sample(storage.read(given.run), given.requests, given.seed))
    return 0
