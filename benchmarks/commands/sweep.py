"""`python -m benchmarks sweep`."""

import argparse

from benchmarks.arguments import Arguments
from benchmarks.sweep import options, session
from benchmarks.sweep.report_page import add_report, built_after

NAME = "sweep"
HELP = "measure several loads: closed loops (--concurrency) and open loops (--rate)"


def add_arguments(command: argparse.ArgumentParser) -> None:
    options.add_loads(command)
    options.add_repeats(command)
    options.add_options(command)
    add_report(command)


def run(given: Arguments) -> int:
    settings = options.settings(given)
    with built_after(given.out, given.report):
        return session.execute(settings, options.sweep_planner(given, settings.prompts))
