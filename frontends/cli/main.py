"""The console script `llmserve`: one name for every program of the project.

Each command imports its program when it runs, so `llmserve chat` needs no engine.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

import attrs

from frontends.options.sources import nearest


@attrs.frozen
class Command:
    """One row of `COMMANDS`.

    Attributes:
        module: the module with the command's function.
        help: the line in the help.
        extra: the extra of the package that the command needs; None for none.
        function: takes the arguments and the program's name, and exits or returns the exit code.
    """

    module: str
    help: str
    extra: str | None = None
    function: str = "main"


COMMANDS = {
    "serve": Command("frontends.aiohttp_app", "serve a model over HTTP with an OpenAI-compatible API"),
    "socket": Command("frontends.socket_app", "serve a model over raw sockets"),
    "keys": Command("frontends.access.keys_command", "create and list API keys", function="keys_command"),
    "config": Command("frontends.cli.config", "print the settings of `serve` as a file for --config"),
    "chat": Command("frontends.cli.chat", "chat with a running server in the terminal"),
    "top": Command("frontends.cli.top", "watch a running server in the terminal", "cli"),
    "doctor": Command("frontends.cli.doctor", "check this machine, and print the command that fixes what is wrong"),
    "bench": Command("benchmarks.__main__", "measure a model under load and find where it saturates", "benchmarks"),
    "report": Command("reports.__main__", "draw what `bench` measured", "reports"),
    "completion": Command("frontends.cli.completion", "print the completion of bash, zsh or fish", "cli"),
}
HELP = "\n".join(
    (
        "usage: llmserve COMMAND ...",
        "",
        "vLLM with admission control, cancellation, deadlines, tenants and metrics.",
        "",
        "commands:",
        *(f"  {name:<12} {command.help}" for name, command in COMMANDS.items()),
        "",
        "`llmserve COMMAND --help` lists a command's options; `llmserve --version` prints the version.",
        "",
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, 2 for an unknown command or a missing package."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"llmserve {version('llmserve')}\n")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        near = nearest(name, COMMANDS)
        sys.stderr.write(f"llmserve: error: unknown command {name!r}; {f'do you mean {near!r}?' if near else 'see `llmserve --help`'}\n")
        return 2
    try:
        function = getattr(import_module(command.module), command.function)
    except ModuleNotFoundError as error:
        if command.extra is None:
            raise
        sys.stderr.write(f"llmserve {name}: error: the package {error.name} is not installed; pip install 'llmserve[{command.extra}]'\n")
        return 2
    try:
        code = int(function(rest, f"llmserve {name}") or 0)
        print(end="", flush=True)
    except BrokenPipeError:
        # The reader, such as `head`, has ended. The interpreter flushes standard output again as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code
