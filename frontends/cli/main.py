"""The console script `llmserve`: one name for every program of the project.

Each command imports its program when it runs, so `llmserve chat` needs no engine.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import attrs

from frontends.options.output import written
from frontends.options.suggestions import nearest
from llmserve.runtime.version import __version__


@attrs.frozen
class Command:
    """One row of `COMMANDS`.

    Attributes:
        module: the module with the command's function.
        help: the line in the help.
        extra: the extra of the package that the command needs; None for none.
        function: takes the arguments and the program's name, and exits or returns the exit code.
        prints: whether its result goes to standard output.
    """

    module: str
    help: str
    extra: str | None = None
    function: str = "main"
    prints: bool = True


COMMANDS = {
    "serve": Command("frontends.aiohttp_app", "serve a model over HTTP with an OpenAI-compatible API", prints=False),
    "batch": Command("frontends.batch.command", "answer a file of requests in OpenAI's batch format, without a server", prints=False),
    "socket": Command("frontends.socket_app", "serve a model over raw sockets", prints=False),
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
    """Run a command; return its exit code.

    It is 1 if standard output's reader has ended, 2 for an unknown command, a missing package or a
    standard output that cannot be written, and 130 after Ctrl-C.
    """
    return written(lambda: _run(*(sys.argv[1:] if argv is None else argv) or ["--help"]), "llmserve")


def _run(name: str, *rest: str) -> int:
    command = COMMANDS.get(name)
    if sys.stdout is None and (command is None or command.prints):
        return _fail(f"llmserve {name}", "standard output is closed, and this command prints to it")
    if name in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"llmserve {__version__}\n")
        return 0
    if command is None:
        near = nearest(name, COMMANDS)
        return _fail("llmserve", f"unknown command {name!r}; {f'do you mean {near!r}?' if near else 'see `llmserve --help`'}")
    try:
        function = getattr(import_module(command.module), command.function)
    except ModuleNotFoundError as error:
        if command.extra is None:
            raise
        return _fail(f"llmserve {name}", f"the package {error.name} is not installed; pip install 'llmserve[{command.extra}]'")
    return int(function(list(rest), f"llmserve {name}") or 0)


def _fail(prog: str, message: str) -> int:
    sys.stderr.write(f"{prog}: error: {message}\n")
    return 2
