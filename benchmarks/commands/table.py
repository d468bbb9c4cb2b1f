"""`python -m benchmarks table`."""

import argparse
import pathlib

from benchmarks.analysis import report
from benchmarks.analysis.table import as_csv
from benchmarks.arguments import Arguments, add_price
from benchmarks.recording import storage
from benchmarks.search import result

NAME = "table"
HELP = "print a run's table and verdict as Markdown, or its table as CSV"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=pathlib.Path, metavar="FILE.json")
    add_price(command)
    words = "markdown (with the verdict) or csv (plain numbers, one line per point; default: %(default)s)"
    command.add_argument("--format", choices=("markdown", "csv"), default="markdown", help=words)


def run(given: Arguments) -> int:
    found = report.analyse(storage.priced(storage.read(given.run), given.price_per_hour))
    print(as_csv(found).rstrip("\n") if given.format == "csv" else result.conclude(found)[0])
    return 0
