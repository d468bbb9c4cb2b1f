"""The raw-socket server program: `python -m frontends.socket_app --help`.

One connection carries many streams. docs/protocol.md describes the wire format.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import attrs

from frontends.access.exposure import check_reach
from frontends.net.connection_limits import ConnectionLimiter
from frontends.net.listeners import UnixAccess
from frontends.net.tls import TLS, followed
from frontends.options.definitions import group, option
from frontends.options.parsers import count
from frontends.options.suggestions import Parser
from frontends.program.lifecycle import run, serve
from frontends.program.reload import LiveSettings
from frontends.program.service import Service
from frontends.program.settings import ProgramSettings
from frontends.rawsocket.addresses import Address, parse_address
from frontends.rawsocket.server import open_server
from llmserve import ConfigurationError

DEFAULT = "tcp://127.0.0.1:9000"


@attrs.frozen(kw_only=True)
class SocketSettings:
    """Where a raw-socket server listens, and for how many streams."""

    addresses: tuple[str, ...] = option(
        (DEFAULT,),
        f"address to listen on: tcp://host:port, tls://host:port or unix:///path; repeatable (default: {DEFAULT})",
        metavar="ADDRESS",
        repeat=True,
        name="listen",
    )
    unix_access: UnixAccess = group(UnixAccess)
    max_streams: int = option(1024, "maximum number of open streams on one connection (default: %(default)s)", metavar="N", parse=count)


@attrs.frozen(kw_only=True)
class SocketServerSettings(ProgramSettings):
    """The settings of the raw-socket server program."""

    socket: SocketSettings = group(SocketSettings)


def main(argv: Sequence[str] | None = None, prog: str = "python -m frontends.socket_app") -> None:
    """Run the program."""
    parser = Parser(
        prog=prog,
        description="Serve a model over raw sockets: one connection carries many streams, at a lower cost per token than HTTP.",
    )
    run(parser, argv, SocketServerSettings, start)


async def start(live: LiveSettings[SocketServerSettings]) -> int:
    settings = live.current
    access = settings.open_access()
    addresses = [parse_address(text) for text in settings.socket.addresses]
    # Read the files now, so that an invalid file is reported before the model is loaded.
    tls = settings.access.open_tls()
    if tls is None and any(address.scheme == "tls" for address in addresses):
        raise ConfigurationError("a tls:// address requires --tls-cert and --tls-key")
    plain = any(address.scheme == "tcp" for address in addresses)
    known = access.keys is not None or (settings.access.tls_client_ca is not None and not plain)
    hosts = [address.host for address in addresses if address.scheme != "unix"]
    check_reach("--listen", hosts, settings.engine.spec.version(), insecure=settings.access.insecure, authenticated=known)
    return await serve(live, access, partial(listening, settings, addresses, tls))


@asynccontextmanager
async def listening(
    settings: SocketServerSettings, addresses: Sequence[Address], tls: TLS | None, service: Service
) -> AsyncIterator[list[str]]:
    """Serve raw sockets at the addresses, and yield them with their ports."""
    limits, unix = settings.access, settings.socket.unix_access
    server = open_server(
        service.manager,
        service.name,
        addresses,
        tls=tls,
        access=service.access,
        max_streams=settings.socket.max_streams,
        limiter=ConnectionLimiter(limits.max_connections, limits.max_peer_connections, strangers=not unix.owner_alone),
        unix=unix,
        max_hold=settings.limits.max_hold,
        max_incomplete=limits.max_incomplete_bytes,
    )
    async with server as bound, followed(tls):
        yield [str(address) for address in bound]


if __name__ == "__main__":
    main()
