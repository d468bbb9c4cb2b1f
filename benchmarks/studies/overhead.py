"""`python -m benchmarks overhead`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_out, keep, numbers, positive, say
from benchmarks.host_cost import overhead
from benchmarks.host_cost.server_processes import Setting
from benchmarks.host_cost.variants import CHOICES, IN_PROCESS, parse_side
from llmserve.engines.vllm.args import parse_engine_args

NAME = "overhead"
HELP = "measure the host CPU time per token, beside vLLM's own server"


def add_arguments(command: argparse.ArgumentParser) -> None:
    sides = f"from {CHOICES} (default: %(default)s)"
    command.add_argument("--sides", default="bare,inprocess,http,vllm,chat,vllm-chat,tcp,unix", metavar="SIDE,...", help=sides)
    command.add_argument(
        "--core", choices=("stubbed", "nothing", "null", "real"), default="stubbed", help="the engine core (default: %(default)s)"
    )
    command.add_argument("--streams", type=numbers(int), default=[64], metavar="N,N,...")
    command.add_argument("--rounds", type=positive(int), default=5)
    command.add_argument("--requests", type=positive(int), default=1, help="consecutive requests of each stream in a round")
    command.add_argument("--prompt-tokens", type=positive(int), default=16)
    command.add_argument("--output-tokens", type=positive(int), default=1024)
    command.add_argument("--processes", type=positive(int), default=1, help="generator processes for each server")
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE", help="for every engine; repeatable")
    add_out(command)


def run(given: Arguments) -> int:
    names, setting = side_names(given.sides), side_setting(given)
    measuring = overhead.measure(names, setting, given.streams, given.rounds, say)
    found = asyncio.run(measuring)
    print(overhead.conclude(found))
    keep(found, given.out)
    return 0


def side_names(text: str) -> list[str]:
    """Split the names of variants; raises TargetError that names an unknown variant."""
    names = text.split(",")
    for name in names:
        if name not in IN_PROCESS:
            parse_side(name)
    return names


def side_setting(given: Arguments) -> Setting:
    return Setting(
        core=given.core,
        model=given.model,
        engine_args=parse_engine_args(given.engine_arg),
        prompt_tokens=given.prompt_tokens,
        answer_tokens=given.output_tokens,
        requests=given.requests,
        processes=given.processes,
    )
