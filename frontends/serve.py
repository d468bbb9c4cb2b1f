"""The HTTP server as a program."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from aiohttp import web

from frontends.aiohttp_app import build_app
from frontends.program import BACKLOG, CannotListen, Listen, run
from llmserve import EngineManager

# 3630 s is aiohttp's default for AppRunner.
KEEPALIVE_SECONDS = 75.0
# After draining there is nothing left to wait for but sockets to close.
CLOSE_SECONDS = 2.0


def main(argv: list[str] | None = None) -> None:
    """`python -m frontends.aiohttp_app`"""
    parser = argparse.ArgumentParser(prog="python -m frontends.aiohttp_app", description="Serve a model over HTTP, as OpenAI does.")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    run(parser, argv, lambda options: http_listener(options.host, options.port))


def http_listener(host: str, port: int) -> Listen:
    @asynccontextmanager
    async def listen(manager: EngineManager, model: str) -> AsyncIterator[list[str]]:
        runner = web.AppRunner(
            build_app(manager, model),
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=CLOSE_SECONDS,
        )
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
            except OSError as error:
                raise CannotListen(f"{host}:{port}", error) from None
            yield [f"http://{host}:{runner.addresses[0][1]}  (/health/ready says 503 until the model is loaded)"]
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()

    return listen


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{number} is no port: choose 0 to 65535")
    return number
