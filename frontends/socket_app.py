"""The raw-socket server: one connection, many streams. `python -m frontends.socket_app --help`; docs/protocol.md is its wire."""

import argparse
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio

from frontends import frames
from frontends.access import Access
from frontends.addresses import Address, parse_address
from frontends.door import Door
from frontends.exposure import check_reach
from frontends.flush import MAX_HOLD, FlushScheduler
from frontends.listeners import CannotListen, UnixAccess, add_unix_options, bind_all, bind_unix
from frontends.options import count
from frontends.program import Listen, installed, run, serve
from frontends.receive_budget import ReceiveBudget
from frontends.reception import Reception, listen
from frontends.socket_connection import Connection, Service
from frontends.tls import TLS, followed
from llmserve import ConfigurationError, EngineManager

REFUSAL = frames.encode(frames.Error(0, "FrameError", "this server has as many connections as it may"))
DEFAULT = "tcp://127.0.0.1:9000"


def main(argv: list[str] | None = None) -> None:
    """`python -m frontends.socket_app`"""
    parser = argparse.ArgumentParser(
        prog="python -m frontends.socket_app",
        description="Serve a model over raw sockets: many streams on one connection, for clients that want every token at the least cost.",
    )
    parser.add_argument(
        "--listen", action="append", metavar="ADDRESS", help=f"tcp://host:port, tls://host:port or unix:///path; repeat it ({DEFAULT})"
    )
    add_unix_options(parser)
    parser.add_argument("--max-streams", type=count, default=1024, metavar="N", help="of one connection at once (default: %(default)s)")

    async def start(options: argparse.Namespace) -> int:
        access = Access.open(options)
        return await serve(options, _listener(options, access), access)

    run(parser, argv, start)


def _listener(options: argparse.Namespace, access: Access) -> Listen:
    addresses = [parse_address(text) for text in options.listen or [DEFAULT]]
    # Read now: a wrong file is told before the model is loaded.
    tls = TLS.of(options.tls_cert, options.tls_key, options.tls_client_ca)
    if tls is None and any(address.scheme == "tls" for address in addresses):
        raise ConfigurationError("a tls:// address needs --tls-cert and --tls-key")
    plain = any(address.scheme == "tcp" for address in addresses)
    known = access.keys is not None or (options.tls_client_ca is not None and not plain)
    hosts = [address.host for address in addresses if address.scheme != "unix"]
    check_reach("--listen", hosts, installed(options), insecure=options.insecure, authenticated=known)

    @asynccontextmanager
    async def listen(manager: EngineManager, model: str) -> AsyncIterator[list[str]]:
        server = open_server(
            manager,
            model,
            addresses,
            tls=tls,
            access=access,
            max_streams=options.max_streams,
            door=Door.of(options),
            unix=UnixAccess.of(options),
            max_hold=options.max_hold,
            max_incomplete=options.max_incomplete_bytes,
        )
        async with server as bound, followed(tls):
            yield [str(address) for address in bound]

    return listen


@asynccontextmanager
async def open_server(
    manager: EngineManager,
    model: str,
    addresses: Sequence[Address],
    *,
    tls: TLS | None = None,
    access: Access | None = None,
    max_streams: int = 1024,
    door: Door | None = None,
    unix: UnixAccess | None = None,
    max_hold: float = MAX_HOLD,
    max_incomplete: int | None = None,
) -> AsyncIterator[list[Address]]:
    """Listens while it is entered, for a manager that the caller enters and leaves; gives the addresses with their ports.

    Raises CannotListen.
    """
    door = door or Door()
    service = Service(manager, model, access or Access(), max_streams, scheduler=FlushScheduler(max_hold))
    service.budget = ReceiveBudget(time.monotonic, max_incomplete)
    bound = []
    async with AsyncExitStack() as stack:
        for address in addresses:
            try:
                listeners = _bind(address, unix or UnixAccess())
            except OSError as error:
                raise CannotListen(str(address), error) from None
            port = 0 if address.scheme == "unix" else listeners[0].getsockname()[1]
            reception = Reception(partial(Connection, service), REFUSAL, door, tls if address.scheme == "tls" else None)
            for listener in listeners:
                await stack.enter_async_context(listen(reception, listener))
            if address.scheme == "unix":
                stack.callback(Path(address.path).unlink, missing_ok=True)
                bound.append(address)
            else:
                bound.append(Address(address.scheme, address.host, port))
        try:
            yield bound
        finally:
            with anyio.CancelScope(shield=True):
                await service.close()


def _bind(address: Address, unix: UnixAccess) -> list[socket.socket]:
    return [bind_unix(Path(address.path), unix)] if address.scheme == "unix" else bind_all([address.host], address.port)


if __name__ == "__main__":
    main()
