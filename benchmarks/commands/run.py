"""`python -m benchmarks run`."""

import argparse

from benchmarks.arguments import Arguments
from benchmarks.sweep import options, session
from benchmarks.sweep.report_page import add_report, built_after

NAME = "run"
HELP = "measure one load: a closed or open loop, a ramp, steps, or recorded traffic"


def add_arguments(command: argparse.ArgumentParser) -> None:
    options.add_load(command)
    options.add_repeats(command)
    options.add_options(command)
    add_report(command)


def run(given: Arguments) -> int:
    load = options.run_load(given)
    settings = options.settings(given, trace=load.trace)
    with built_after(given.out, given.report):
        return session.execute(settings, options.listed(given, [load], settings.prompts))
