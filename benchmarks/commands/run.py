"""`python -m benchmarks run`."""

import argparse

from benchmarks.arguments import Arguments
from benchmarks.sweep import options, session
from benchmarks.sweep.report_page import add_report, built_after

NAME = "run"
HELP = "measure one load: a closed or open loop, a ramp, steps, or recorded traffic"


def add_arguments(command: argparse.ArgumentParser) -> None:
    options.add_load(command)
    options.add_options(command)
    add_report(command)


def run(given: Arguments) -> int:
    with built_after(given.out, given.report):
        return session.execute(options.settings(given, [options.run_load(given)]))
