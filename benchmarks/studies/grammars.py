"""`python -m benchmarks grammars`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_engine, add_out, keep, positive, say
from benchmarks.robustness import hostile_schemas
from llmserve import EngineManager
from llmserve.engines.vllm.args import parse_engine_args

NAME = "grammars"
HELP = "send hostile schemas beside a stream; report the stream's gaps and the time to each refusal"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command)
    command.add_argument("--at-once", type=positive(int), default=16, help="concurrent requests of each kind (default: %(default)s)")
    command.add_argument(
        "--seconds",
        type=positive(float),
        default=10.0,
        help="duration of the quiet phase before the attacks (default: %(default)s)",
    )
    add_out(command)


def run(given: Arguments) -> int:
    manager = EngineManager.open(given.model, engine_args=parse_engine_args(given.engine_arg))
    found = asyncio.run(hostile_schemas.measure(manager, given.at_once, given.seconds, say))
    print(hostile_schemas.conclude(found))
    keep(found, given.out)
    return 0
