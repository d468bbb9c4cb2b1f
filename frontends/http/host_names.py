"""The host names that a server answers to, against DNS rebinding.

A page in a user's browser can make its own name resolve to 127.0.0.1. Its requests then carry that
name as Host and as Origin, so comparing the two headers finds nothing wrong. The page cannot make a
browser send an IP address or `localhost` as Host.
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
        "accept requests for this host name in addition to localhost and IP addresses; repeatable "
        "(default: any name; no other name if only this machine can connect and no key or client certificate is required)"
    )
    parser.add_argument("--allowed-host", action="append", type=_given_name, metavar="NAME", help=words)


def is_authenticated(options: argparse.Namespace, access: Access) -> bool:
    """Return whether every client must show a key or a certificate."""
    return access.keys is not None or options.tls_client_ca is not None


def allowed_hosts(options: argparse.Namespace, access: Access) -> Collection[str] | None:
    """Return the names that `--allowed-host` or its default allows; None allows any name."""
    if options.allowed_host:
        return list(options.allowed_host)
    # No browser connects to a unix socket, and no page knows a key.
    return None if is_authenticated(options, access) or options.unix or not all(map(is_loopback, options.hosts)) else []


def answer_to(names: Collection[str] | None) -> Middleware:
    """Return a middleware that accepts only `localhost`, IP addresses and these names as Host.

    None accepts any Host.
    """
    allowed = None if names is None else {"localhost", *(name.lower() for name in names)}

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get(hdrs.HOST)
        # HTTP/1.0 clients may omit the Host header; browsers never do.
        if allowed is not None and host is not None and not _is_address(name := _name(host)) and name not in allowed:
            raise HTTPFailure(
                403, "this server does not accept this Host header: use localhost, or start the server with --allowed-host", "unknown_host"
            )
        return await handler(request)

    return check_host


def _given_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host name: omit the scheme and the port")
    return text.removesuffix(".").lower()


def _name(host: str) -> str:
    """Return a Host header's name without its port; `check_form` has checked the header."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.removesuffix(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
