"""`python -m benchmarks truth`."""

import argparse
import asyncio
from pathlib import Path

import msgspec

from benchmarks.arguments import Arguments, add_out, keep, positive, say
from benchmarks.targets import TargetError
from benchmarks.truth import behaviours, study
from benchmarks.truth.tools import PEERS, Load, Ours, Tool, find_peer, version_of
from llmserve.models import BUNDLED, resolve

NAME = "truth"
HELP = "compare the figures of load generators with the log of a scripted server"


def peer(text: str) -> tuple[str, Path]:
    """Parse `NAME=PROGRAM`."""
    name, equals, program = text.partition("=")
    if name not in PEERS or not equals or not Path(program).is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PROGRAM with a name from {', '.join(PEERS)} and a program that exists")
    return name, Path(program)


def rows(text: str) -> tuple[behaviours.Behaviour, ...]:
    try:
        return behaviours.find(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_peers(command: argparse.ArgumentParser) -> None:
    """Add the options that `find_tools` reads."""
    words = f"a peer's program: {', '.join(PEERS)}; repeatable (default: those on PATH)"
    command.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PROGRAM", help=words)
    command.add_argument("--no-peers", action="store_true", help="measure only this project's generator")
    words = "model folder with the tokenizer of the peers (default: %(default)s)"
    command.add_argument("--tokenizer", default=BUNDLED, metavar="FOLDER", help=words)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_peers(command)
    command.add_argument("--rows", type=rows, default=behaviours.BEHAVIOURS, metavar="NAME,...", help="behaviours (default: all)")
    words = "further tolerance of TTFT and E2E, in ms, on a machine with other work (default: %(default)s)"
    command.add_argument("--slack", type=float, default=0.0, metavar="MS", help=words)
    command.add_argument(
        "--jobs", type=positive(int), default=1, metavar="N", help="tools that run at the same time (default: %(default)s)"
    )
    command.add_argument("--page", type=Path, metavar="FILE.md", help="write the table as a page")
    command.add_argument("--resume", action="store_true", help="keep the cells that --out has, and measure the others")
    add_out(command)


def run(given: Arguments) -> int:
    tools, slack = find_tools(given), given.slack / 1000
    found = study.begin({tool.name: version_of(tool) for tool in tools})
    if given.resume and given.out and given.out.exists():
        found.cells = read(given.out).cells

    def report(cell: study.Cell) -> None:
        say(f"{cell.behaviour}, {cell.tool}: {'; '.join(cell.wrong(slack)) or 'ok'}")
        keep(found, given.out)

    asyncio.run(study.measure(found, given.rows, tools, report, given.jobs))
    keep(found, given.out)
    page = study.page(found, given.rows, slack)
    if given.page:
        given.page.write_text(page)
    else:
        print(page)
    return int(bool(found.ours_wrong(slack)))


def find_tools(given: Arguments, load: Load = Load()) -> list[Tool]:  # noqa: B008 - frozen
    """Return our generator and the peers that are installed; the others are reported."""
    tools: list[Tool] = [Ours(load)]
    if given.no_peers:
        return tools
    programs = dict(given.peer)
    tokenizer = resolve(given.tokenizer)
    for name in PEERS:
        tool = find_peer(name, programs.get(name), tokenizer, load)
        if tool is None:
            say(f"{name} is not installed: pass --peer {name}=PROGRAM to measure it")
        else:
            tools.append(tool)
    return tools


def read(path: Path) -> study.Truth:
    try:
        return msgspec.json.decode(path.read_bytes(), type=study.Truth)
    except msgspec.MsgspecError as error:
        raise TargetError(f"{path} has no results of `benchmarks truth`: {error}") from error
