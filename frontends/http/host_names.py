"""Which names a server answers to.

A page in a user's browser can let its own name lead to 127.0.0.1 (DNS rebinding). Its requests carry that name as Host and as Origin, so
no comparison of the two finds anything wrong. It cannot make a browser send an IP address or `localhost` as Host.
"""

import argparse
import ipaddress
import re
from collections.abc import Collection

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from frontends.access.control import Access
from frontends.access.exposure import is_loopback
from frontends.http.request_checks import Handler
from frontends.openai.errors import HTTPFailure

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", re.ASCII)


def add_host_option(parser: argparse.ArgumentParser) -> None:
    words = (
        "answer to this host name, beside localhost and IP addresses; repeat it "
        "(default: to any name, but to none if only this machine can connect and no key or client certificate is required)"
    )
    parser.add_argument("--allowed-host", action="append", type=_given_name, metavar="NAME", help=words)


def is_authenticated(options: argparse.Namespace, access: Access) -> bool:
    """Whether every client must show a key or a certificate."""
    return access.keys is not None or options.tls_client_ca is not None


def allowed_hosts(options: argparse.Namespace, access: Access) -> Collection[str] | None:
    """The names that `--allowed-host` or its default allows; None allows any."""
    if options.allowed_host:
        return list(options.allowed_host)
    # No browser connects to a unix socket, and no page knows a key.
    return None if is_authenticated(options, access) or options.unix or not all(map(is_loopback, options.hosts)) else []


def answer_to(names: Collection[str] | None) -> Middleware:
    """A middleware that refuses requests for other hosts than `localhost`, IP addresses and these names; None refuses nothing."""
    allowed = None if names is None else {"localhost", *(name.lower() for name in names)}

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get(hdrs.HOST)
        # HTTP/1.0 may leave it out, which no browser does.
        if allowed is not None and host is not None and not _is_address(name := _name(host)) and name not in allowed:
            raise HTTPFailure(403, "this server does not answer to that Host: use localhost, or --allowed-host", "unknown_host")
        return await handler(request)

    return check_host


def _given_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host name: leave out the scheme and the port")
    return text.removesuffix(".").lower()


def _name(host: str) -> str:
    """Without its port, of a Host that `check_form` has let through."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.removesuffix(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
