"""Command line of `attacks`."""

import argparse
import asyncio
import pathlib
import sys

from benchmarks.recording import storage
from benchmarks.robustness.attacks import play, rows
from benchmarks.sweep import options
from benchmarks.targets import TargetError
from llmserve.engines import ENGINES
from llmserve.engines.vllm.args import parse_engine_args


def add_attacks(command: argparse.ArgumentParser) -> None:
    words = (
        "http://HOST:PORT of a running server; rows that need special server arguments are skipped (default: start a server for each row)"
    )
    command.add_argument("--url", help=words)
    words = "engine of the server that is started; rows 1 and 1b need vllm (default: %(default)s)"
    command.add_argument("--engine", choices=list(ENGINES), default="simulated", help=words)
    command.add_argument("--model", default="bundled")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    words = "additional server argument, such as --server-arg=--max-seconds=60; repeatable"
    command.add_argument("--server-arg", action="append", default=[], metavar="ARG", help=words)
    command.add_argument("--rows", default="", metavar="N,N,...", help="rows to run: 1, 1b, 2, 3, 4, 5, 9, 10 (default: all)")
    words = "concurrent attackers in rows that do not set their number (default: %(default)s)"
    command.add_argument("--attackers", type=options.positive(int), default=8, help=words)
    words = "duration of each phase: before, with the control, with the attackers, after (default: %(default)s)"
    command.add_argument("--seconds", type=options.positive(float), default=5.0, help=words)
    words = "maximum increase of the canary's worst latency over that before and with the control (default: %(default)s)"
    command.add_argument("--rise", type=options.positive(float), default=0.1, metavar="S", help=words)
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")


def run_attacks(given: argparse.Namespace) -> int:
    """Run the attacks; exit code 1 if a row breaks a bound."""
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
        print(f"running {row.number}, {row.name} ...", file=sys.stderr, flush=True)

    found = asyncio.run(play.measure(chosen, wanted, begin, lambda played: print(played, flush=True)))
    if given.out:
        given.out.write_bytes(storage.readable(found))
    return int(any(row.broken for row in found.rows))
