"""`python -m benchmarks sweep`."""

import argparse

from benchmarks.arguments import Arguments
from benchmarks.sweep import options, session

NAME = "sweep"
HELP = "measure several loads: closed loops (--concurrency) and open loops (--rate)"


def add_arguments(command: argparse.ArgumentParser) -> None:
    options.add_loads(command)
    options.add_repeats(command)
    options.add_options(command)


def run(given: Arguments) -> int:
    return session.execute(options.settings(given), options.sweep_planner(given))
