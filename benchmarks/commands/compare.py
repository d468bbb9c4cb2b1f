"""`python -m benchmarks compare`."""

import argparse
import pathlib

from benchmarks.analysis import compare, report, shares
from benchmarks.arguments import Arguments, say
from benchmarks.recording import storage
from benchmarks.recording.storage import UnreadableRun

NAME = "compare"
HELP = "compare B with A at each load; exit code 1 if B is worse, refuses or fails more, beyond the intervals"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", type=pathlib.Path, metavar="A.json")
    command.add_argument("b", type=pathlib.Path, metavar="B.json")
    words = "ignore relative changes smaller than this (default: %(default)s)"
    formats = "csv has the ratios and shares as plain numbers, in seconds, and the notes on standard error (default: %(default)s)"
    command.add_argument("--format", choices=("markdown", "csv"), default="markdown", help=formats)
    command.add_argument("--margin", type=float, default=compare.MARGIN, help=words)


def run(given: Arguments) -> int:
    a, b = (report.analyse(storage.read(path)) for path in (given.a, given.b))
    found = compare.compare(a, b)
    if not found.ratios and not found.shares:
        raise UnreadableRun("; ".join([f"{given.a} and {given.b} share no load that can be compared", *found.notes]))
    if given.format == "csv":
        print(compare.as_csv(found, given.margin), end="")
        for note in found.notes:
            say(note)
    else:
        print(_markdown(found, given.margin))
    return int(found.regressed(given.margin))


def _markdown(found: compare.Comparison, margin: float) -> str:
    tables = [compare.table(found.ratios, margin)] if found.ratios else []
    tables += [shares.table(found.shares)] if found.shares else []
    notes = ["\n".join(f"- {note}" for note in found.notes)] if found.notes else []
    return "\n\n".join(tables + notes)
