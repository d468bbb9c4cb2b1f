"""`llmserve completion SHELL`: completion for bash, zsh and fish, made by shtab from the parsers."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import shtab

from frontends.access import keys_command
from frontends.batch import command as batch
from frontends.cli import chat, config, doctor, top
from frontends.cli.main import COMMANDS
from frontends.http.settings import HTTPServerSettings
from frontends.options.command_line import add_options
from frontends.options.suggestions import Parser
from frontends.socket_app import SocketServerSettings

# For a positional value of which nothing is known, shtab lets zsh print its help. Beside that, zsh does not insert an option.
NOTHING = {"bash": "", "zsh": "( )", "fish": ""}
SHELLS = ("bash", "zsh", "fish")


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="""Print the completion of a shell: `eval "$(llmserve completion bash)"`, the same with zsh after `compinit`, or
        `llmserve completion fish | source`""",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


PARSERS = {
    "keys": keys_command.build_parser,
    "config": config.build_parser,
    "batch": batch.build_parser,
    "chat": chat.build_parser,
    "top": top.build_parser,
    "doctor": doctor.build_parser,
    "completion": build_parser,
}


def build() -> argparse.ArgumentParser:
    """Build the parser of all commands, which is only completed and never parses."""
    parser = argparse.ArgumentParser(prog="llmserve")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    made = {name: parser_of(name) for name, parser_of in PARSERS.items()} | dict(_measuring())
    for name, kind in (("serve", HTTPServerSettings), ("socket", SocketServerSettings)):
        made[name] = argparse.ArgumentParser(name)
        add_options(made[name], kind)
    for name, command in COMMANDS.items():
        if name in made:
            _complete_values(made[name])
            commands.add_parser(name, help=command.help, parents=[made[name]], add_help=False, conflict_handler="resolve")
    return parser


def _complete_values(parser: argparse.ArgumentParser) -> None:
    """Let values of type Path complete as files, and other positional values as nothing, also those of a command's own commands."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list, and shtab reads it too
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own attribute
        elif not action.option_strings and action.choices is None:
            action.complete = NOTHING  # type: ignore[attr-defined]
        for command in action.choices.values() if isinstance(action.choices, dict) else ():
            if isinstance(command, argparse.ArgumentParser):
                _complete_values(command)


def _measuring() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the parsers of the commands whose packages are installed."""
    for name in ("bench", "report"):
        with suppress(ModuleNotFoundError):
            yield name, import_module(COMMANDS[name].module).build_parser(name)


def main(argv: Sequence[str] | None = None, prog: str = "llmserve completion") -> int:
    """Print a shell's completion; return 0."""
    sys.stdout.write(shtab.complete(build(), build_parser(prog).parse_args(argv).shell))
    return 0
