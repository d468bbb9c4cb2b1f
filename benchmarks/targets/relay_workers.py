"""The simpler shape that `--workers` is compared with: one process holds the engine's client.

Every token passes through that process. N HTTP processes are connected to it by frames.
Usage: `python -m benchmarks.targets.relay_workers N HOST PORT ARGUMENTS-OF-frontends.socket_app`.
"""

import multiprocessing
import subprocess
import sys
import tempfile
from typing import Any, cast

import anyio

from frontends.http.app import build_app
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.listeners import bind
from frontends.program.lifecycle import BACKEND
from frontends.rawsocket.client import SocketClient
from llmserve import EngineManager


class Joined:
    """The part of a manager that completions and chats need, at the other end of a socket."""

    state = "joined"
    # The process does not know the engine's adapters, so the HTTP server must not ask for any.
    engine_is_up = False

    def __init__(self, client: SocketClient) -> None:
        self.stream = client.stream
        self.generate = client.generate

    def check_health(self) -> None:
        """Do nothing: the process is connected, so there is an engine."""


def serve(address: str, host: str, port: int) -> None:
    """Run one HTTP process for as long as its parent lives."""
    anyio.run(_serve, address, host, port, backend_options=BACKEND)


async def _serve(address: str, host: str, port: int) -> None:
    async with SocketClient(address) as client:
        manager: Any = Joined(client)
        app = build_app(cast("EngineManager", manager), client.model)
        async with running(app) as acceptor, listen(acceptor, bind(host, port, share=True)):
            await client.wire.lost.wait()


def main(count: int, host: str, port: int, arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="llmserve-joined-") as folder:
        address = f"unix://{folder}/socket"
        command = [sys.executable, "-m", "frontends.socket_app", "--listen", address, *arguments]
        owner = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 - this very interpreter, with our own module
        assert owner.stderr is not None
        for line in owner.stderr:
            print(line, end="", file=sys.stderr)
            if "  ready  " in line:
                break
        context = multiprocessing.get_context("spawn")
        for _ in range(count):
            context.Process(target=serve, args=(address, host, port), daemon=True).start()
        sys.exit(owner.wait())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
