"""The HTTP server program, in one process or several: `python -m frontends.aiohttp_app --help`.

`build_app` builds its routes for use in other aiohttp programs.
"""

import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from frontends.access.exposure import check_reach
from frontends.access.keys_command import keys_command
from frontends.http.app import build_app
from frontends.http.departure import Departure
from frontends.http.serving import serve_http
from frontends.http.settings import HTTPServerSettings
from frontends.net.acceptor import listen
from frontends.net.listeners import CannotListen, authority, bind_all, bind_unix
from frontends.net.tls import TLS, followed
from frontends.options.parsers import AUTO
from frontends.options.suggestions import Parser
from frontends.program.lifecycle import run, serve
from frontends.program.reload import LiveSettings
from frontends.program.service import Service
from frontends.workers.supervisor import serve_workers
from llmserve import ConfigurationError
from llmserve.engines import ENGINES
from llmserve.runtime.cpus import available_cpus

# Cores that one worker needs, beside an engine core, the supervisor and the system
# (docs/performance.md).
CORES_PER_WORKER = 4
MAX_WORKERS = 8

__all__ = ["build_app", "main"]


PROGRAM = "python -m frontends.aiohttp_app"


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> None:
    """Run the program."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["keys"]:
        sys.exit(keys_command(given[1:]))
    keys = f"{PROGRAM} keys" if prog == PROGRAM else "llmserve keys"
    parser = Parser(
        prog=prog,
        description="Serve a model over HTTP with an OpenAI-compatible API.",
        epilog=f"To create API keys, see `{keys} --help`.",
    )
    run(parser, given, HTTPServerSettings, start)


async def start(live: LiveSettings[HTTPServerSettings]) -> int:
    settings = live.current
    engine, http, access = settings.engine, settings.http, settings.open_access()
    # Read the files now, so that an invalid file is reported before the model is loaded.
    tls = settings.access.open_tls()
    hosts = [] if http.unix else list(http.hosts)
    check_reach("--host", hosts, engine.spec.version(), insecure=settings.access.insecure, authenticated=settings.is_authenticated(access))
    addresses, listeners = bind_http(settings)
    count = count_workers(settings)
    try:
        if count > 1:
            # Each worker follows the files for its own connections; this process logs the changes.
            async with followed(tls):
                return await serve_workers(live, count, addresses, listeners, access)
        departure = Departure()
        return await serve(live, access, partial(listening, settings, addresses, listeners, tls, departure), departure.begin)
    finally:
        for listener in listeners:
            listener.close()
        if http.unix:
            http.unix.unlink(missing_ok=True)


def count_workers(settings: HTTPServerSettings) -> int:
    """Return the number of workers. Raises ConfigurationError for several where one process owns a folder of batches."""
    http = settings.http
    if http.batch_folder is None:
        return choose_workers(settings.engine.kind, settings.engine_args()) if http.workers == AUTO else int(http.workers)
    if http.workers not in (AUTO, "1"):
        raise ConfigurationError(f"--batch-folder and --workers {http.workers} exclude each other: one process owns the folder")
    return 1


def choose_workers(engine: str, args: Mapping[str, Any]) -> int:
    """Return the number of workers that the CPU cores can carry; 1 for an engine that does not gain."""
    if not ENGINES[engine].gains_from_workers(args):
        return 1
    return max(1, min(MAX_WORKERS, available_cpus() // CORES_PER_WORKER))


def bind_http(settings: HTTPServerSettings) -> tuple[list[str], list[socket.socket]]:
    """Return the addresses to log and the listening sockets. Raises CannotListen."""
    http, words = settings.http, "  (/health/ready returns 503 until the model is loaded)"
    if http.unix:
        try:
            return [f"unix://{http.unix.absolute()}{words}"], [bind_unix(http.unix, http.unix_access)]
        except OSError as error:
            raise CannotListen(str(http.unix), error) from None
    listeners = bind_all(http.hosts, http.port)
    scheme, port = "https" if settings.access.tls_cert else "http", listeners[0].getsockname()[1]
    return [f"{scheme}://{authority(host, port)}{words}" for host in http.hosts], listeners


@asynccontextmanager
async def listening(
    settings: HTTPServerSettings,
    addresses: list[str],
    listeners: Sequence[socket.socket],
    tls: TLS | None,
    departure: Departure,
    service: Service,
) -> AsyncIterator[list[str]]:
    """Serve HTTP on the listeners, and yield the addresses."""
    async with serve_http(settings, service, tls, departure) as acceptor, listen(acceptor, *listeners, patience=departure.patience):
        yield addresses


if __name__ == "__main__":
    main()
