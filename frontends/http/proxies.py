"""Trusted proxies, whose `X-Forwarded-For` and `X-Forwarded-Proto` identify their clients."""

import argparse
import ipaddress
from collections.abc import Iterable

import attrs
from aiohttp import web
from aiohttp.typedefs import Middleware

from frontends.http.request_checks import Handler
from frontends.net.connection_limits import ConnectionLimiter
from frontends.openai.errors import HTTPFailure

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDED_FOR, FORWARDED_PROTO = "X-Forwarded-For", "X-Forwarded-Proto"
UNIX = "unix"

# The client's address and scheme, where a trusted proxy has sent them.
CLIENT = web.RequestKey("client", str)
SCHEME = web.RequestKey("scheme", str)


@attrs.frozen
class Proxies:
    """The trusted proxies.

    Attributes:
        trusted: their networks; None in it trusts the clients of a unix socket.
    """

    trusted: frozenset[Network | None] = frozenset()

    @classmethod
    def of(cls, trusted: Iterable[Network | None]) -> "Proxies":
        return cls(frozenset(trusted))

    def trusts(self, peer: str) -> bool:
        """Return whether a connection's address is trusted. A unix socket's address is empty."""
        if not peer:
            return None in self.trusted
        address = _address(peer)
        return address is not None and any(network is not None and address in network for network in self.trusted)

    def client_of(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return the last address in `X-Forwarded-For` that is not a trusted proxy's.

        Addresses before that one come from the client, which may have invented them.
        """
        if not self.trusts(peer):
            return peer
        for text in reversed([part.strip() for value in forwarded for part in value.split(",")]):
            address = _address(text)
            if address is None:
                break
            peer = str(address)
            if not self.trusts(peer):
                break
        return peer


def know_clients(proxies: Proxies, limiter: ConnectionLimiter) -> Middleware:
    """Return a middleware that notes the client whose request a trusted proxy forwards.

    Requests and connections of one client together have the limit for connections of one address.
    """

    @web.middleware
    async def know(request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = request.remote or ""
        if not proxies.trusts(peer):
            return await handler(request)
        client = proxies.client_of(peer, request.headers.getall(FORWARDED_FOR, []))
        scheme = request.headers.get(FORWARDED_PROTO, "").lower()
        if scheme in ("http", "https"):
            request[SCHEME] = scheme
        if client == peer:
            return await handler(request)
        request[CLIENT] = client
        if not limiter.enter_behind_proxy(client):
            words = "the limit of open requests and connections per address is reached"
            raise HTTPFailure(503, words, "too_many_connections")
        try:
            return await handler(request)
        finally:
            limiter.leave_behind_proxy(client)

    return know


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address with or without a port; None for any other text."""
    host = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    # A listener of both families shows an IPv4 client as a mapped address.
    return getattr(address, "ipv4_mapped", None) or address


def parse_network(text: str) -> Network | None:
    """Parse the network of an option; None for `unix`. Raises ArgumentTypeError."""
    if text == UNIX:
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address or a network: use 10.0.0.7, 10.0.0.0/8 or unix") from None
