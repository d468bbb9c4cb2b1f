"""The HTTP server as a program, in one process or in several."""

import argparse
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import anyio
from aiohttp import web

from frontends.aiohttp_app import build_app, make_runner
from frontends.exposure import check_reach
from frontends.options import engine_args
from frontends.program import BACKLOG, CannotListen, Listen, bind, http_address, installed, run, serve
from frontends.workers.owner import serve_workers
from llmserve import EngineManager

# What one worker can carry beside an engine core, an owner and the system (docs/performance.md).
CORES_PER_WORKER = 4
MOST_WORKERS = 8


def main(argv: list[str] | None = None) -> None:
    """`python -m frontends.aiohttp_app`"""
    parser = argparse.ArgumentParser(prog="python -m frontends.aiohttp_app", description="Serve a model over HTTP, as OpenAI does.")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=_workers,
        default="auto",
        metavar="N",
        help="processes that serve HTTP beside the engine's; auto: by the cores, 1 for an engine on a CPU (default: %(default)s)",
    )
    run(parser, argv, start)


async def start(options: argparse.Namespace) -> int:
    check_reach("--host", [options.host], installed(options), insecure=options.insecure)
    count = choose_workers(options.engine, engine_args(options)) if options.workers == "auto" else int(options.workers)
    if count > 1:
        return await serve_workers(options, count)
    return await serve(options, http_listener(options.host, options.port))


def choose_workers(engine: str, args: Mapping[str, Any]) -> int:
    """As many as the cores carry. One, if what limits an answer is not the host: a simulated engine, or one on a CPU; and for several
    engine cores, which workers cannot share."""
    try:
        distribution("vllm")
    except PackageNotFoundError:
        return 1
    if engine != "vllm" or args.get("data_parallel_size", 1) != 1:
        return 1
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // CORES_PER_WORKER))


def http_listener(host: str, port: int) -> Listen:
    @asynccontextmanager
    async def listen(manager: EngineManager, model: str) -> AsyncIterator[list[str]]:
        runner = make_runner(build_app(manager, model))
        await runner.setup()
        try:
            try:
                listener = bind(host, port)
            except OSError as error:
                raise CannotListen(f"{host}:{port}", error) from None
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
            yield [http_address(host, listener)]
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()

    return listen


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{number} is no port: choose 0 to 65535")
    return number


def _workers(text: str) -> str:
    if text != "auto" and (not text.isdigit() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers: choose auto, 1 or more")
    return text
