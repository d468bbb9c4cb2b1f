"""`python -m benchmarks COMMAND`: each command measures one thing and prints what it found."""

import argparse
import asyncio
import pathlib
import sys

import msgspec

from benchmarks import parity, results, session, summary
from benchmarks.results import UnreadableRun
from benchmarks.session import Load
from benchmarks.targets import TargetError
from llmserve import ConfigurationError
from llmserve.engines import ENGINES
from llmserve.engines.vllm_args import parse_engine_args


def run_parity(options: argparse.Namespace) -> int:
    workload = parity.Workload(
        requests=options.requests,
        concurrency=options.concurrency,
        prompt_words=options.prompt_words,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    engine_args = parse_engine_args(options.engine_arg)
    found = asyncio.run(parity.measure(options.model, engine_args, workload, options.rounds, lambda line: print(line, flush=True)))
    print(parity.conclude(found))
    if options.out:
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return 0


def run_sweep(options: argparse.Namespace) -> int:
    loads = [Load(concurrency=number) for number in options.concurrency or ()] + [Load(rate=rate) for rate in options.rate or ()]
    if not loads:
        raise TargetError("nothing to measure: give --concurrency 1,2,4 or --rate 0.5,1,2")
    return session.execute(options, loads)


def run_table(options: argparse.Namespace) -> int:
    run, records = results.read(options.run)
    print(summary.table(session.summaries(run, records)))
    return 0


def _numbers(kind: type[int] | type[float]) -> "argparse._ActionType":
    def parse(text: str) -> list[float]:
        numbers = [kind(part) for part in text.split(",")]
        if not all(0 < number < 10**6 for number in numbers):
            raise argparse.ArgumentTypeError(f"{text!r}: numbers above 0, with commas between them")
        return numbers

    return parse


def _add_parity(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("parity", help="throughput of an EngineManager against a bare AsyncLLM loop, alternating in one process")
    command.set_defaults(run_command=run_parity)
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--concurrency", type=int, default=16)
    command.add_argument("--requests", type=int, default=32, help="in each leg, four of which make a round (default: %(default)s)")
    command.add_argument("--prompt-words", type=int, default=32)
    command.add_argument("--max-tokens", type=int, default=48)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")


def _add_sweep(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("sweep", help="one point after another, each a closed loop (--concurrency) or an open one (--rate)")
    command.set_defaults(run_command=run_sweep)
    command.add_argument("--target", default="inprocess", help="inprocess, or the URL of a server (default: %(default)s)")
    command.add_argument("--model", help="in process: bundled, a folder or a hub name; over HTTP: the server's name for it")
    command.add_argument("--engine", choices=ENGINES, default="vllm")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--concurrency", type=_numbers(int), metavar="N,N,...")
    command.add_argument("--rate", type=_numbers(float), metavar="R,R,...", help="requests a second, Poisson")
    command.add_argument("--requests", type=int, default=32, help="at least so many in a closed loop (default: %(default)s)")
    command.add_argument("--per-client", type=int, default=4, help="and at least so many for each client (default: %(default)s)")
    command.add_argument("--seconds", type=float, default=30.0, help="length of an open loop (default: %(default)s)")
    command.add_argument("--warm-up", type=int, default=4, help="requests before each point that do not count (default: %(default)s)")
    command.add_argument("--prompt-tokens", type=session.lengths, default="128", metavar="LENGTHS", help="default: %(default)s")
    command.add_argument("--output-tokens", type=session.lengths, default="64", metavar="LENGTHS", help="default: %(default)s")
    command.add_argument("--vocabulary", type=int, default=32_000, help="over HTTP: the model's number of token ids (default: %(default)s)")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--out", type=pathlib.Path, default=pathlib.Path("run.json"), metavar="FILE.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_parity(commands)
    _add_sweep(commands)
    command = commands.add_parser("table", help="the Markdown table of a run")
    command.set_defaults(run_command=run_table)
    command.add_argument("run", type=pathlib.Path)
    options = parser.parse_args()
    try:
        sys.exit(options.run_command(options))
    except (ConfigurationError, TargetError, UnreadableRun) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
