"""`python -m benchmarks schema`."""

import argparse
import sys

from benchmarks.arguments import Arguments
from benchmarks.recording import storage

NAME = "schema"
HELP = "print the JSON Schema of a run's files"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command has no options."""


def run(given: Arguments) -> int:
    sys.stdout.buffer.write(storage.readable(storage.schema()))
    return 0
