"""The console script `llmserve`: one name for every program of the project.

Each command imports its program when it runs, so `llmserve chat` needs no engine.
"""

import attrs


@attrs.frozen
class Command:
    """A command: the function `main(argv, prog)` of a module, and its line in the help."""

    module: str
    help: str
    function: str = "main"


COMMANDS = {
    "serve": Command("frontends.aiohttp_app", "serve a model over HTTP with an OpenAI-compatible API"),
    "socket": Command("frontends.socket_app", "serve a model over raw sockets"),
    "keys": Command("frontends.access.keys_command", "add and list API keys", "keys_command"),
    "chat": Command("frontends.cli.chat", "chat with a running server in the terminal"),
    "top": Command("frontends.cli.top", "watch a running server in the terminal"),
    "doctor": Command("frontends.cli.doctor", "check this machine"),
    "bench": Command("benchmarks.__main__", "measure a model under load and find where it saturates"),
    "report": Command("reports.__main__", "draw what `bench` measured"),
}
