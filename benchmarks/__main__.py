"""`python -m benchmarks COMMAND`: measure a model under load and report why it saturates."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn, cast

from benchmarks.arguments import Command
from benchmarks.commands import compare, predict, run, sample, schema, search, self_test, sweep, table, worker
from benchmarks.recording.storage import UnreadableRun
from benchmarks.targets import TargetError
from benchmarks.workload.traces import UnreadableFile
from frontends.options.output import written
from frontends.options.suggestions import Parser
from llmserve import ConfigurationError, EngineError

PROGRAM = "python -m benchmarks"
COMMANDS: Sequence[Command] = (sweep, search, run, worker, table, compare, predict, sample, self_test, schema)
# Modules of `benchmarks.studies`, which the wheel omits.
STUDIES = (
    "parity", "overhead", "latency", "calibrate", "overload", "faults", "cancels", "connections", "storms", "attacks", "grammars",
    "images", "batch", "cluster", "routing", "soak", "truth", "ceilings",
)  # fmt: skip


def import_studies() -> Sequence[Command]:
    """Import this project's studies; none in an installed wheel."""
    if find_spec("benchmarks.studies") is None:
        return ()
    return [cast("Command", import_module(f"benchmarks.studies.{name}")) for name in STUDIES]


def build_parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """Build the parser; the commands for users come first."""
    studies = import_studies()
    listing = "\n".join(f"  {study.NAME:<12} {study.HELP}" for study in studies) or "  in a checkout of the repository"
    parser = Parser(
        prog=prog,
        description=__doc__,
        epilog=f"studies of this project:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for one in (*COMMANDS, *studies):
        # A command without a help text is not listed: the epilog lists the studies.
        listed = one in COMMANDS
        command = commands.add_parser(one.NAME, help=one.HELP) if listed else commands.add_parser(one.NAME)
        command.description = one.HELP
        command.set_defaults(run_command=one.run)
        one.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> NoReturn:
    """Exit with code 0, 1 (regression), 2 (wrong input, unmeasurable target) or 130 (Ctrl-C)."""
    parser = build_parser(prog)
    given = parser.parse_args(argv)
    try:
        sys.exit(given.run_command(given))
    except (ConfigurationError, EngineError, TargetError, UnreadableRun, UnreadableFile) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    sys.exit(written(main, PROGRAM))
