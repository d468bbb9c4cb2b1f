"""`llmserve completion SHELL`: completion for bash, zsh and fish, made by shtab from the parsers."""

import argparse
import sys
from collections.abc import Sequence

import shtab

from frontends.cli.main import COMMANDS
from frontends.cli.parsers import parsers


def build() -> argparse.ArgumentParser:
    """Build a parser of all commands, which only serves to be completed."""
    parser = argparse.ArgumentParser(prog="llmserve")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, made in parsers().items():
        # A parser is added as a parent: `add_parser` would make a new one.
        commands.add_parser(name, help=COMMANDS[name].help, parents=[made], add_help=False)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "llmserve completion") -> int:
    """Print a shell's completion; return 0."""
    parser = argparse.ArgumentParser(prog=prog, description='Print the completion of a shell: eval "$(llmserve completion bash)"')
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS[:2] + ["fish"])
    sys.stdout.write(shtab.complete(build(), parser.parse_args(argv).shell))
    return 0
