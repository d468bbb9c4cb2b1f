"""`python -m benchmarks calibrate`."""

import argparse
import asyncio
import pathlib

from benchmarks.arguments import Arguments, add_engine, numbers, say
from benchmarks.overload import calibrate
from llmserve.engines.vllm.args import parse_engine_args

NAME = "calibrate"
HELP = "measure an engine's step times and fit a step law to them"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command, "vllm")
    command.add_argument(
        "--concurrency",
        type=numbers(int),
        default=[1, 4, 16, 64],
        metavar="N,N,...",
        help="clients of each closed loop (default: 1,4,16,64)",
    )
    command.add_argument("--out", type=pathlib.Path, default=pathlib.Path("steps.json"), metavar="FILE.json")


def run(given: Arguments) -> int:
    steps = asyncio.run(calibrate.measure(given.model, given.engine, parse_engine_args(given.engine_arg), given.concurrency, say))
    law = calibrate.fit(steps)
    print(f"{len(steps)} steps: {law}")
    calibrate.write(given.out, steps, law)
    return 0
