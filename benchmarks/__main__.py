"""`python -m benchmarks COMMAND`: each command measures one thing and prints what it found."""

import argparse
import asyncio
import pathlib
import sys

import msgspec

from benchmarks import parity
from llmserve import ConfigurationError
from llmserve.engines.vllm_args import parse_engine_arg


def run_parity(options: argparse.Namespace) -> None:
    workload = parity.Workload(
        requests=options.requests,
        concurrency=options.concurrency,
        prompt_words=options.prompt_words,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    engine_args = dict(parse_engine_arg(text) for text in options.engine_arg)
    results = asyncio.run(parity.measure(options.model, engine_args, workload, options.rounds, lambda line: print(line, flush=True)))
    print(parity.conclude(results))
    if options.out:
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("parity", help="throughput of an EngineManager against a bare AsyncLLM loop, alternating in one process")
    command.set_defaults(run=run_parity)
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--concurrency", type=int, default=16)
    command.add_argument("--requests", type=int, default=32, help="in each leg, four of which make a round (default: %(default)s)")
    command.add_argument("--prompt-words", type=int, default=32)
    command.add_argument("--max-tokens", type=int, default=48)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    options = parser.parse_args()
    try:
        options.run(options)
    except ConfigurationError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
