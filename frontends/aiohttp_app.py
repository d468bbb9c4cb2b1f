"""The HTTP server program, in one process or several: `python -m frontends.aiohttp_app --help`.

`build_app` builds its routes for use in other aiohttp programs.
"""

import argparse
import re
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from frontends.access.control import Access
from frontends.access.exposure import check_reach
from frontends.access.keys_command import keys_command
from frontends.http.access_log import open_log
from frontends.http.app import build_app
from frontends.http.departure import Departure
from frontends.http.event_stream import KEEPALIVE_SECONDS
from frontends.http.health import check_of
from frontends.http.host_names import add_host_option, allowed_hosts, is_authenticated
from frontends.http.origins import add_origin_option
from frontends.http.proxies import Proxies, add_proxy_option, know_clients
from frontends.http.server import running
from frontends.net.acceptor import listen
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.listeners import CannotListen, UnixAccess, add_unix_options, authority, bind_all, bind_unix, without_brackets
from frontends.net.tls import TLS, followed
from frontends.program.lifecycle import Listen, run, serve
from frontends.program.options import engine_args, seconds
from frontends.workers.supervisor import serve_workers
from llmserve import EngineManager
from llmserve.engines import ENGINES
from llmserve.runtime.cpus import available_cpus

# Cores that one worker needs, beside an engine core, the supervisor and the system
# (docs/performance.md).
CORES_PER_WORKER = 4
MAX_WORKERS = 8
LOOPBACK = "127.0.0.1"

__all__ = ["build_app", "main"]


def main(argv: list[str] | None = None) -> None:
    """Run `python -m frontends.aiohttp_app`."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["keys"]:
        sys.exit(keys_command(given[1:]))
    parser = argparse.ArgumentParser(
        prog="python -m frontends.aiohttp_app",
        description="Serve a model over HTTP with an OpenAI-compatible API.",
        epilog="To create API keys, see `python -m frontends.aiohttp_app keys --help`.",
    )
    words = "address or host name to listen on; repeatable; :: means all IPv4 and IPv6 addresses (default: 127.0.0.1)"
    parser.add_argument("--host", action="append", type=without_brackets, dest="hosts", metavar="HOST", help=words)
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on; 0 picks a free port (default: %(default)s)")
    parser.add_argument("--unix", type=Path, metavar="PATH", help="listen on a unix socket instead of TCP")
    add_unix_options(parser)
    parser.add_argument(
        "--workers",
        type=_workers,
        default="auto",
        metavar="N",
        help="number of processes that serve HTTP; auto = chosen by the number of CPU cores, 1 for an engine on a CPU "
        "(default: %(default)s)",
    )
    words = "append a JSON line per request to this file, - for standard output: caller, request and outcome, without prompts or answers"
    add_host_option(parser)
    add_origin_option(parser)
    add_proxy_option(parser)
    words_root = "path prefix under which a proxy serves this server, such as /llm (default: none)"
    parser.add_argument("--root-path", type=_root_path, default="", metavar="PATH", help=words_root)
    interval = "send a comment on a stream after this many silent seconds, so that proxies keep it open; 0 = never (default: %(default)s)"
    parser.add_argument("--keepalive-interval", type=seconds, metavar="S", default=KEEPALIVE_SECONDS, help=interval)
    parser.add_argument("--request-log", type=Path, metavar="FILE", help=words)
    words = "also log requests for health checks, /load and /metrics in the request log"
    parser.add_argument("--log-probes", action="store_true", help=words)
    run(parser, given, start)


async def start(options: argparse.Namespace) -> int:
    options.hosts = options.hosts or [LOOPBACK]
    access = Access.open(options)
    # Read the files now, so that an invalid file is reported before the model is loaded.
    tls = TLS.of(options.tls_cert, options.tls_key, options.tls_client_ca)
    hosts, version = [] if options.unix else options.hosts, ENGINES[options.engine].version()
    check_reach("--host", hosts, version, insecure=options.insecure, authenticated=is_authenticated(options, access))
    addresses, listeners = bind_http(options)
    count = choose_workers(options.engine, engine_args(options)) if options.workers == "auto" else int(options.workers)
    try:
        if count > 1:
            # Each worker follows the files for its own connections; this process logs the changes.
            async with followed(tls):
                return await serve_workers(options, count, addresses, listeners, access)
        departure = Departure()
        return await serve(options, http_listener(options, addresses, listeners, access, tls, departure), access, departure.begin)
    finally:
        for listener in listeners:
            listener.close()
        if options.unix:
            options.unix.unlink(missing_ok=True)


def choose_workers(engine: str, args: Mapping[str, Any]) -> int:
    """Return the number of workers that the CPU cores can carry; 1 for an engine that does not gain."""
    if not ENGINES[engine].gains_from_workers(args):
        return 1
    return max(1, min(MAX_WORKERS, available_cpus() // CORES_PER_WORKER))


def bind_http(options: argparse.Namespace) -> tuple[list[str], list[socket.socket]]:
    """Return the addresses to log and the listening sockets. Raises CannotListen."""
    words = "  (/health/ready returns 503 until the model is loaded)"
    if options.unix:
        try:
            return [f"unix://{options.unix.absolute()}{words}"], [bind_unix(options.unix, UnixAccess.of(options))]
        except OSError as error:
            raise CannotListen(str(options.unix), error) from None
    listeners = bind_all(options.hosts, options.port)
    scheme, port = "https" if options.tls_cert else "http", listeners[0].getsockname()[1]
    return [f"{scheme}://{authority(host, port)}{words}" for host in options.hosts], listeners


def http_listener(
    options: argparse.Namespace,
    addresses: list[str],
    listeners: Sequence[socket.socket],
    access: Access,
    tls: TLS | None,
    departure: Departure,
) -> Listen:
    log = open_log(options.request_log)

    @asynccontextmanager
    async def listening(manager: EngineManager, model: str) -> AsyncIterator[list[str]]:
        hosts, most = allowed_hosts(options, access), options.max_incomplete_bytes
        proxies = Proxies.of(options.trusted_proxy)
        limiter = ConnectionLimiter.of(options, proxies.trusts)
        app = build_app(
            manager,
            model,
            access=access,
            log=log,
            log_probes=options.log_probes,
            hosts=hosts,
            max_hold=options.max_hold,
            max_incomplete=most,
            departure=departure,
            origins=options.allowed_origin,
            keepalive=options.keepalive_interval,
            check=check_of(manager, options.generate_check),
            clients=know_clients(proxies, limiter),
            root_path=options.root_path,
        )
        try:
            async with running(app, limiter, tls) as acceptor, listen(acceptor, *listeners, patience=departure.patience), followed(tls):
                yield addresses
        finally:
            if log is not None:
                log.close()

    return listening


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{number} is not a valid port: use 0 to 65535")
    return number


def _workers(text: str) -> str:
    if text != "auto" and (not text.isdigit() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of workers: use auto, 1 or more")
    return text


def _root_path(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid path prefix: use a path such as /llm, without a host")
    return text.removesuffix("/")


if __name__ == "__main__":
    main()
