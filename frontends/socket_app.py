"""The raw-socket server program: `python -m frontends.socket_app --help`.

One connection carries many streams. docs/protocol.md describes the wire format.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from frontends.access.control import Access
from frontends.access.exposure import check_reach
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.listeners import UnixAccess, add_unix_options
from frontends.net.tls import TLS, followed
from frontends.program.lifecycle import Listen, run, serve
from frontends.program.options import count
from frontends.rawsocket.addresses import parse_address
from frontends.rawsocket.server import open_server
from llmserve import ConfigurationError, EngineManager
from llmserve.engines import ENGINES

DEFAULT = "tcp://127.0.0.1:9000"

__all__ = ["main", "open_server"]


def main(argv: list[str] | None = None) -> None:
    """Run `python -m frontends.socket_app`."""
    parser = argparse.ArgumentParser(
        prog="python -m frontends.socket_app",
        description="Serve a model over raw sockets: one connection carries many streams, at a lower cost per token than HTTP.",
    )
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help=f"address to listen on: tcp://host:port, tls://host:port or unix:///path; repeatable (default: {DEFAULT})",
    )
    add_unix_options(parser)
    words = "maximum number of open streams on one connection (default: %(default)s)"
    parser.add_argument("--max-streams", type=count, default=1024, metavar="N", help=words)

    async def start(options: argparse.Namespace) -> int:
        access = Access.open(options)
        return await serve(options, _listener(options, access), access)

    run(parser, argv, start)


def _listener(options: argparse.Namespace, access: Access) -> Listen:
    addresses = [parse_address(text) for text in options.listen or [DEFAULT]]
    # Read the files now, so that an invalid file is reported before the model is loaded.
    tls = TLS.of(options.tls_cert, options.tls_key, options.tls_client_ca)
    if tls is None and any(address.scheme == "tls" for address in addresses):
        raise ConfigurationError("a tls:// address requires --tls-cert and --tls-key")
    plain = any(address.scheme == "tcp" for address in addresses)
    known = access.keys is not None or (options.tls_client_ca is not None and not plain)
    hosts = [address.host for address in addresses if address.scheme != "unix"]
    check_reach("--listen", hosts, ENGINES[options.engine].version(), insecure=options.insecure, authenticated=known)

    @asynccontextmanager
    async def listen(manager: EngineManager, model: str) -> AsyncIterator[list[str]]:
        server = open_server(
            manager,
            model,
            addresses,
            tls=tls,
            access=access,
            max_streams=options.max_streams,
            limiter=ConnectionLimiter.of(options),
            unix=UnixAccess.of(options),
            max_hold=options.max_hold,
            max_incomplete=options.max_incomplete_bytes,
        )
        async with server as bound, followed(tls):
            yield [str(address) for address in bound]

    return listen


if __name__ == "__main__":
    main()
