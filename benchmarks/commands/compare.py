"""`python -m benchmarks compare`."""

import argparse
import pathlib

from benchmarks.analysis import compare, report, shares
from benchmarks.arguments import Arguments
from benchmarks.recording import storage
from benchmarks.recording.storage import UnreadableRun

NAME = "compare"
HELP = "compare B with A at each load; exit code 1 if B is worse, refuses or fails more, beyond the intervals"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", type=pathlib.Path, metavar="A.json")
    command.add_argument("b", type=pathlib.Path, metavar="B.json")
    words = "ignore relative changes smaller than this (default: %(default)s)"
    command.add_argument("--margin", type=float, default=compare.MARGIN, help=words)


def run(given: Arguments) -> int:
    a, b = (report.analyse(storage.read(path)) for path in (given.a, given.b))
    found = compare.compare(a, b)
    if not found.ratios and not found.shares:
        raise UnreadableRun("; ".join([f"{given.a} and {given.b} share no load that can be compared", *found.notes]))
    tables = [compare.table(found.ratios, given.margin)] if found.ratios else []
    tables += [shares.table(found.shares)] if found.shares else []
    notes = ["\n".join(f"- {note}" for note in found.notes)] if found.notes else []
    print("\n\n".join(tables + notes))
    return int(found.regressed(given.margin))
