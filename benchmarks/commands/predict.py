"""`python -m benchmarks predict`."""

import argparse
import pathlib

from benchmarks.analysis import predict, report
from benchmarks.arguments import Arguments, numbers, positive
from benchmarks.recording import storage

NAME = "predict"
HELP = "predict throughput at loads that were not measured, and report the error of such predictions"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=pathlib.Path, metavar="FILE.json")
    command.add_argument("--concurrency", type=numbers(int), default=[], metavar="N,N,...")
    command.add_argument("--prompt-tokens", type=positive(int), help="default: as in the run's first sweep")
    command.add_argument("--output-tokens", type=positive(int), help="default: as in the run's first sweep")


def run(given: Arguments) -> int:
    print(predict.predict(report.analyse(storage.read(given.run)), given.concurrency, given.prompt_tokens, given.output_tokens))
    return 0
