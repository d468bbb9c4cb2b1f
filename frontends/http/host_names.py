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

from frontends.http.request_checks import Handler
from frontends.openai.errors import HTTPFailure

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", re.ASCII)


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


def parse_host_name(text: str) -> str:
    """Parse the host name of an option. Raises ArgumentTypeError."""
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
