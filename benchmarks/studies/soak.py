"""`python -m benchmarks soak`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_engine, add_out, keep, positive, say
from benchmarks.robustness import soak
from llmserve import EngineManager
from llmserve.engines.vllm.args import parse_engine_args

NAME = "soak"
HELP = "run requests of every kind for a long time; exit code 1 if memory grows"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command, "simulated")
    command.add_argument("--requests", type=positive(int), default=1_000_000, help="default: %(default)s")
    command.add_argument("--seconds", type=positive(float), help="duration, instead of --requests")
    command.add_argument("--at-once", type=positive(int), default=32, help="concurrency (default: %(default)s)")
    command.add_argument("--seed", type=int, default=1)
    add_out(command)


def run(given: Arguments) -> int:
    config = soak.config(given.at_once)
    manager = EngineManager.open(given.model, engine=given.engine, engine_args=parse_engine_args(given.engine_arg), config=config)
    length = soak.Length(requests=given.requests, seconds=given.seconds)
    found = asyncio.run(soak.measure(manager, length, given.at_once, given.seed, say))
    print(soak.conclude(found))
    keep(found, given.out)
    return int(not found.level)
