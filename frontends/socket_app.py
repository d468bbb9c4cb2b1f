"""The raw-socket server: one connection, many streams. `python -m frontends.socket_app --help`; docs/protocol.md is its wire."""

import argparse
import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio

from frontends.addresses import Address, parse_address, server_context
from frontends.exposure import check_reach
from frontends.program import BACKLOG, CannotListen, Listen, bind, installed, run, serve
from frontends.socket_connection import Connection, Service
from llmserve import ConfigurationError, EngineManager

DEFAULT = "tcp://127.0.0.1:9000"
KEY_VARIABLE = "LLMSERVE_API_KEY"


def main(argv: list[str] | None = None) -> None:
    """`python -m frontends.socket_app`"""
    parser = argparse.ArgumentParser(
        prog="python -m frontends.socket_app",
        description="Serve a model over raw sockets: many streams on one connection, for clients that want every token at the least cost.",
        epilog=f"With {KEY_VARIABLE} in the environment, clients must show that key.",
    )
    parser.add_argument(
        "--listen", action="append", metavar="ADDRESS", help=f"tcp://host:port, tls://host:port or unix:///path; repeat it ({DEFAULT})"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="the certificate chain for tls:// addresses, as PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    parser.add_argument("--max-streams", type=_positive, default=1024, metavar="N", help="of one connection at once (default: %(default)s)")

    async def start(options: argparse.Namespace) -> int:
        return await serve(options, _listener(options))

    run(parser, argv, start)


def _listener(options: argparse.Namespace) -> Listen:
    addresses = [parse_address(text) for text in options.listen or [DEFAULT]]
    if any(address.scheme == "tls" for address in addresses) and not (options.tls_cert and options.tls_key):
        raise ConfigurationError("a tls:// address needs --tls-cert and --tls-key")
    # Read now: a wrong file is told before the model is loaded.
    context = server_context(options.tls_cert, options.tls_key) if options.tls_cert and options.tls_key else None
    key = os.environ.get(KEY_VARIABLE) or None

    hosts = [address.host for address in addresses if address.scheme != "unix"]
    check_reach("--listen", hosts, installed(options), insecure=options.insecure, authenticated=key is not None)

    @asynccontextmanager
    async def listen(manager: EngineManager, model: str) -> AsyncIterator[list[str]]:
        async with open_server(manager, model, addresses, tls=context, key=key, max_streams=options.max_streams) as bound:
            yield [str(address) for address in bound]

    return listen


@asynccontextmanager
async def open_server(
    manager: EngineManager,
    model: str,
    addresses: Sequence[Address],
    *,
    tls: ssl.SSLContext | None = None,
    key: str | None = None,
    max_streams: int = 1024,
) -> AsyncIterator[list[Address]]:
    """Listens while it is entered, for a manager that the caller enters and leaves; gives the addresses with their ports.

    Raises CannotListen.
    """
    loop = asyncio.get_running_loop()
    service = Service(manager, model, key, max_streams)
    bound = []
    with ExitStack() as stack:
        for address in addresses:
            try:
                listener = _bind(address)
            except OSError as error:
                raise CannotListen(str(address), error) from None
            context = tls if address.scheme == "tls" else None
            server = await loop.create_server(lambda: Connection(service), sock=listener, backlog=BACKLOG, ssl=context)
            stack.callback(server.close)
            if address.scheme == "unix":
                stack.callback(Path(address.path).unlink, missing_ok=True)
                bound.append(address)
            else:
                bound.append(Address(address.scheme, address.host, listener.getsockname()[1]))
        try:
            yield bound
        finally:
            with anyio.CancelScope(shield=True):
                await service.close()


def _bind(address: Address) -> socket.socket:
    if address.scheme != "unix":
        return bind(address.host, address.port)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = Path(address.path)
    try:
        if path.is_socket() and not _answers(path):
            # Left behind by a server that was killed.
            path.unlink()
        # For its owner alone, from the moment that it exists.
        before = os.umask(0o177)
        try:
            listener.bind(address.path)
        finally:
            os.umask(before)
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    main()
