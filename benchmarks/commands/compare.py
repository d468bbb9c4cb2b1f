"""`python -m benchmarks compare`."""

import argparse
import pathlib

from benchmarks.analysis import compare, report
from benchmarks.arguments import Arguments
from benchmarks.recording import storage
from benchmarks.recording.storage import UnreadableRun

NAME = "compare"
HELP = "compare B with A at each load; exit code 1 if B is worse by more than the confidence interval"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", type=pathlib.Path, metavar="A.json")
    command.add_argument("b", type=pathlib.Path, metavar="B.json")
    words = "ignore relative changes smaller than this (default: %(default)s)"
    command.add_argument("--margin", type=float, default=compare.MARGIN, help=words)


def run(given: Arguments) -> int:
    a, b = (report.analyse(storage.read(path)) for path in (given.a, given.b))
    ratios = compare.compare(a, b)
    if not ratios:
        raise UnreadableRun(f"{given.a} and {given.b} share no load")
    print(compare.table(ratios, given.margin))
    return int(any(ratio.regressed(given.margin) for ratio in ratios))
