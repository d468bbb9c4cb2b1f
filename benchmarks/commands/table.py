"""`python -m benchmarks table`."""

import argparse
import pathlib

from benchmarks.analysis import report
from benchmarks.arguments import Arguments
from benchmarks.recording import storage
from benchmarks.search import result

NAME = "table"
HELP = "print a run's Markdown table and verdict"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=pathlib.Path, metavar="FILE.json")


def run(given: Arguments) -> int:
    text, _ = result.conclude(report.analyse(storage.read(given.run)))
    print(text)
    return 0
