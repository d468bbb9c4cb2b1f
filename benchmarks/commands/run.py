"""`python -m benchmarks run`."""

import argparse

from benchmarks.arguments import Arguments
from benchmarks.sweep import options, session

NAME = "run"
HELP = "measure one load: a closed or open loop, a ramp, steps, or recorded traffic"


def add_arguments(command: argparse.ArgumentParser) -> None:
    options.add_load(command)
    options.add_repeats(command)
    options.add_options(command)


def run(given: Arguments) -> int:
    return session.execute(options.settings(given), options.listed(given, [options.run_load(given)]))
