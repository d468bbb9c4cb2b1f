"""`python -m benchmarks parity`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_engine, add_out, keep
from benchmarks.host_cost import parity
from llmserve.engines.vllm.args import parse_engine_args

NAME = "parity"
HELP = "compare the throughput of an EngineManager and a bare AsyncLLM loop, alternating in one process"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_engine(command)
    command.add_argument("--concurrency", type=int, default=16)
    command.add_argument("--requests", type=int, default=32, help="requests per trial; a round has four trials (default: %(default)s)")
    command.add_argument("--prompt-words", type=int, default=32)
    command.add_argument("--max-tokens", type=int, default=48)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seed", type=int, default=1)
    add_out(command)


def run(given: Arguments) -> int:
    workload = parity.Workload(
        requests=given.requests,
        concurrency=given.concurrency,
        prompt_words=given.prompt_words,
        max_tokens=given.max_tokens,
        seed=given.seed,
    )
    engine_args = parse_engine_args(given.engine_arg)
    found = asyncio.run(parity.measure(given.model, engine_args, workload, given.rounds, lambda line: print(line, flush=True)))
    print(parity.conclude(found))
    keep(found, given.out)
    return 0
