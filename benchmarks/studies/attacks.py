"""`python -m benchmarks attacks`."""

import argparse
import asyncio

from benchmarks.arguments import Arguments, add_engine, add_out, keep, positive, say
from benchmarks.robustness.attacks import play, rows
from benchmarks.targets import TargetError
from llmserve.engines.vllm.args import parse_engine_args

NAME = "attacks"
HELP = "replay requests that once stopped a server, beside a canary; exit code 1 if a bound is broken"


def add_arguments(command: argparse.ArgumentParser) -> None:
    words = (
        "http://HOST:PORT of a running server; rows that need special server arguments are skipped (default: start a server for each row)"
    )
    command.add_argument("--url", help=words)
    # Rows 1 and 1b need vllm.
    add_engine(command, "simulated")
    words = "additional server argument, such as --server-arg=--max-seconds=60; repeatable"
    command.add_argument("--server-arg", action="append", default=[], metavar="ARG", help=words)
    command.add_argument("--rows", default="", metavar="N,N,...", help="rows to run: 1, 1b, 2, 3, 4, 5, 9, 10 (default: all)")
    words = "concurrent attackers in rows that do not set their number (default: %(default)s)"
    command.add_argument("--attackers", type=positive(int), default=8, help=words)
    words = "duration of each phase: before, with the control, with the attackers, after (default: %(default)s)"
    command.add_argument("--seconds", type=positive(float), default=5.0, help=words)
    words = "maximum increase of the canary's worst latency over that before and with the control (default: %(default)s)"
    command.add_argument("--rise", type=positive(float), default=0.1, metavar="S", help=words)
    add_out(command)


def run(given: Arguments) -> int:
    try:
        chosen = rows.choose([number for number in given.rows.split(",") if number])
    except ValueError as error:
        raise TargetError(f"--rows: {error}") from None
    wanted = play.Options(
        url=given.url,
        engine=given.engine,
        model=given.model,
        engine_args=parse_engine_args(given.engine_arg),
        server_args=tuple(given.server_arg),
        attackers=given.attackers,
        seconds=given.seconds,
        rise=given.rise,
    )

    def begin(row: rows.Row) -> None:
        say(f"running {row.number}, {row.name} ...")

    found = asyncio.run(play.measure(chosen, wanted, begin, lambda played: print(played, flush=True)))
    keep(found, given.out)
    return int(any(row.broken for row in found.rows))
