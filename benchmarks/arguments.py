"""Arguments and output that the commands share."""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

from benchmarks.recording.storage import readable
from benchmarks.targets.server import without_credentials
from llmserve.engines import ENGINES

# The parsed command line of one command: an attribute for each option that its `add_arguments` adds.
Arguments: TypeAlias = argparse.Namespace


class Command(Protocol):
    """A module of `benchmarks.commands` or `benchmarks.studies`."""

    NAME: str
    HELP: str

    def add_arguments(self, command: argparse.ArgumentParser) -> None:
        """Add the options of the command."""

    def run(self, given: Arguments) -> int:
        """Run it and return the exit code."""


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def keep(found: Any, out: pathlib.Path | None) -> None:
    """Write the results to a file if `--out` was given."""
    if out:
        out.write_bytes(readable(found))


def add_out(command: argparse.ArgumentParser) -> None:
    """Add `--out`."""
    command.add_argument("--out", type=pathlib.Path, metavar="FILE.json")


def add_price(command: argparse.ArgumentParser) -> None:
    """Add `--price-per-hour`."""
    words = "price of the server per hour, in any currency: shows the cost of a million output tokens"
    command.add_argument("--price-per-hour", type=positive(float), metavar="PRICE", help=words)


def add_engine(command: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add `--model`, `--engine-arg`, and `--engine` if it has a default."""
    command.add_argument("--model", default="bundled")
    if default is not None:
        command.add_argument("--engine", choices=list(ENGINES), default=default, help="default: %(default)s")
    command.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")


def numbers(kind: type[int] | type[float]) -> Any:
    """Return a parser of comma-separated numbers above 0."""

    def parse(text: str) -> list[Any]:
        try:
            found = [kind(part) for part in text.split(",")]
        except ValueError:
            found = []
        if not found or not all(0 < number < 10**8 for number in found):
            raise argparse.ArgumentTypeError(f"{text!r}: write numbers above 0, separated by commas")
        return found

    return parse


def header(text: str) -> tuple[str, str]:
    """Parse `NAME:VALUE`, without the value in the error."""
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not name.isascii() or not all(letter.isalnum() or letter in "-_" for letter in name) or not name or "\n" in value:
        raise argparse.ArgumentTypeError("write NAME:VALUE")
    return name, value


def address(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT`."""
    try:
        found = urlsplit(f"//{text}")
        host, port = found.hostname, found.port
    except ValueError:
        host = port = None
    if not host or port is None or found.netloc != text or "@" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: write HOST:PORT")
    return host, port


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: write a JSON object")
    return found


# Options with a secret. A user may shorten their names.
SECRET_OPTIONS = ("--api-key", "--header")


def recorded_command(arguments: Sequence[str]) -> str:
    """Return the command of these arguments, with `***` instead of keys, header values and credentials."""
    words, hide = ["python", "-m", "benchmarks"], False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        secret = len(option) > 2 and any(name.startswith(option) for name in SECRET_OPTIONS)
        if hide or (secret and equals):
            name, colon, _ = (argument if hide else value).partition(":")
            words.append(f"{option + equals if not hide else ''}{f'{name}:' if colon else ''}***")
        else:
            words.append(without_credentials(argument, "***@"))
        hide = secret and not equals and not hide
    return shlex.join(words)


def positive(kind: type[int] | type[float]) -> Any:
    def parse(text: str) -> Any:
        (found, *more) = numbers(kind)(text)
        if more:
            raise argparse.ArgumentTypeError(f"{text!r}: write one number")
        return found

    return parse
