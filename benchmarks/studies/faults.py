"""`python -m benchmarks faults`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_engine, add_out, keep, positive, say
from benchmarks.robustness import engine_faults
from llmserve import EngineManager
from llmserve.engines.vllm.args import parse_engine_args

NAME = "faults"
HELP = "kill or stop a real engine under load and account for every request"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command)
    command.add_argument(
        "--signal",
        choices=engine_faults.SIGNALS,
        default="kill",
        help="signal sent to the engine; stop makes the engine hang (default: %(default)s)",
    )
    command.add_argument("--seconds", type=positive(float), default=600.0, help="duration (default: %(default)s)")
    command.add_argument(
        "--every",
        type=positive(float),
        default=20.0,
        help="seconds that the engine is up before each signal (default: %(default)s)",
    )
    command.add_argument("--clients", type=positive(int), default=8)
    command.add_argument(
        "--stall-timeout",
        type=positive(float),
        default=5.0,
        help="seconds without a step before the engine counts as hung (default: %(default)s)",
    )
    add_out(command)


def run(given: Arguments) -> int:
    args = parse_engine_args(given.engine_arg)
    found = asyncio.run(
        engine_faults.measure(
            lambda config, ledger: EngineManager.open(given.model, engine_args=args, config=config, observers=[ledger]),
            engine_faults.SIGNALS[given.signal],
            seconds=given.seconds,
            every=given.every,
            clients=given.clients,
            stall=given.stall_timeout,
            report=say,
        )
    )
    print(engine_faults.conclude(found))
    keep(found, given.out)
    return int(bool(found.faults))
