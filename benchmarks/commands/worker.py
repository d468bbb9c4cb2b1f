"""`python -m benchmarks worker`."""

import argparse
import functools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Mapping

import anyio
import attrs

from benchmarks.arguments import Arguments, address, header, positive, say
from benchmarks.generator.hosts import TOKEN_VARIABLE, connect, read_token
from benchmarks.generator.worker import Worker
from benchmarks.targets import TargetError
from benchmarks.targets.server import ClientOptions
from llmserve import __version__

NAME = "worker"
HELP = "offer this host's processes as generators to a run elsewhere that was started with --workers-listen"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    words = f"address at which the run listens; the environment variable {TOKEN_VARIABLE} has the token that the run prints"
    add("--connect", type=address, required=True, metavar="HOST:PORT", help=words)
    add("--processes", type=positive(int), default=1, metavar="N", help="generator processes, one core each (default: %(default)s)")
    words = "sent to the servers as a bearer token (default: the environment's OPENAI_API_KEY); a run sends no secrets to its workers"
    add("--api-key", metavar="KEY", help=words)
    add("--header", type=header, action="append", default=[], metavar="NAME:VALUE", help="a further header; may be given several times")


def run(given: Arguments) -> int:
    token = read_token()
    if not token:
        raise TargetError(f"set {TOKEN_VARIABLE} to the token that the run prints")
    key = given.api_key if given.api_key is not None else os.environ.get("OPENAI_API_KEY")
    work = functools.partial(serve, given.connect, token, key, dict(given.header))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work) for _ in range(given.processes)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    return 2 if any(process.exitcode for process in processes) else 0


def serve(where: tuple[str, int], shared: str, api_key: str | None, headers: Mapping[str, str]) -> None:
    """Serve one run in a process of its own, which ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def complete(options: ClientOptions) -> ClientOptions:
        return attrs.evolve(options, api_key=api_key, headers=headers)

    async def work() -> None:
        link = await connect(where, shared, __version__)
        say(f"connected to {where[0]}:{where[1]}")
        await Worker(link, complete).serve()
        say("the run has ended")

    try:
        anyio.run(work)
    except TargetError as error:
        say(f"python -m benchmarks worker: error: {error}")
        os._exit(2)
    except KeyboardInterrupt:
        os._exit(130)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
