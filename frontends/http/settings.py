"""The settings of the HTTP server."""

import argparse
import re
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import attrs
from aiohttp.typedefs import Middleware

from frontends.access.control import Access
from frontends.access.exposure import is_loopback
from frontends.http.event_stream import KEEPALIVE_SECONDS
from frontends.http.host_names import parse_host_name
from frontends.http.origins import parse_origin
from frontends.http.proxies import Network, parse_network
from frontends.net.listeners import UnixAccess, without_brackets
from frontends.options.definitions import group, option
from frontends.options.parsers import AUTO, auto_or_count, count, count_or_none, seconds
from frontends.program.settings import ProgramSettings
from frontends.responses.memory import MAX_BYTES, MAX_RESPONSES

LOOPBACK = "127.0.0.1"


def parse_port(text: str) -> int:
    """Parse the value of a port option. Raises ValueError, ArgumentTypeError."""
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{number} is not a valid port: use 0 to 65535")
    return number


def parse_root_path(text: str) -> str:
    """Parse the path prefix of an option. Raises ArgumentTypeError."""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid path prefix: use a path such as /llm, without a host")
    return text.removesuffix("/")


@attrs.frozen(kw_only=True)
class HTTPSettings:
    """Where an HTTP server listens, and for whom."""

    hosts: tuple[str, ...] = option(
        (LOOPBACK,),
        f"address or host name to listen on; repeatable; :: means all IPv4 and IPv6 addresses (default: {LOOPBACK})",
        parse=without_brackets,
        repeat=True,
        name="host",
    )
    port: int = option(8000, "port to listen on; 0 picks a free port (default: %(default)s)", parse=parse_port)
    unix: Path | None = option(None, "listen on a unix socket instead of TCP", metavar="PATH")
    unix_access: UnixAccess = group(UnixAccess)
    workers: str = option(
        AUTO,
        "number of processes that serve HTTP; auto = chosen by the number of CPU cores, 1 for an engine on a CPU (default: %(default)s)",
        metavar="N",
        parse=auto_or_count("workers"),
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        "accept requests for this host name in addition to localhost and IP addresses; repeatable "
        "(default: any name; no other name if only this machine can connect and no key or client certificate is required)",
        metavar="NAME",
        parse=parse_host_name,
        repeat=True,
        name="allowed_host",
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "allow pages of this origin to call the server from a browser, such as https://app.example; repeatable; * allows any origin",
        metavar="ORIGIN",
        parse=parse_origin,
        repeat=True,
        name="allowed_origin",
    )
    trusted_proxies: tuple[Network | None, ...] = option(
        (),
        "trust X-Forwarded-For and X-Forwarded-Proto from proxies at this address or in this network, such as 10.0.0.0/8, or unix for "
        "clients of --unix; repeatable; the request log and the limit per address then use the address of the proxy's client",
        metavar="ADDRESS",
        parse=parse_network,
        write=lambda network: "unix" if network is None else str(network),
        repeat=True,
        name="trusted_proxy",
    )
    root_path: str = option(
        "", "path prefix under which a proxy serves this server, such as /llm (default: none)", metavar="PATH", parse=parse_root_path
    )
    batch_folder: Path | None = option(
        None,
        "keep the files and batches of /v1/files and /v1/batches in this folder, and run the batches in what other requests leave; "
        "one process owns the folder, so --workers is 1 (default: these routes answer an error)",
        metavar="DIR",
    )
    stored_responses: int = option(
        MAX_RESPONSES,
        "maximum number of responses of /v1/responses that are kept in memory, for a day, for clients that continue or retrieve them; "
        "0 = keep none (default: %(default)s)",
        metavar="N",
        parse=count_or_none,
    )
    stored_response_bytes: int = option(
        MAX_BYTES,
        "maximum total size in bytes of the stored responses, their inputs and their events (default: 256 MiB)",
        metavar="N",
        parse=count,
    )
    keepalive_interval: float = option(
        KEEPALIVE_SECONDS,
        "send a comment on a stream after this many silent seconds, so that proxies keep it open; 0 = never (default: %(default)s)",
        metavar="S",
        parse=seconds,
    )
    request_log: Path | None = option(
        None,
        "append a JSON line per request to this file, - for standard output: caller, request and outcome, without prompts or answers",
        metavar="FILE",
    )
    log_probes: bool = option(False, "also log requests for health checks, /load and /metrics in the request log")

    def host_names(self, *, authenticated: bool) -> Collection[str] | None:
        """Return the names that the server answers to, or None for any name, for `build_app`.

        Args:
            authenticated: whether every client must show a key or a certificate.
        """
        if self.allowed_hosts:
            return self.allowed_hosts
        # No browser connects to a unix socket, and no page knows a key.
        return None if authenticated or self.unix or not all(map(is_loopback, self.hosts)) else []


@attrs.frozen(kw_only=True)
class HTTPServerSettings(ProgramSettings):
    """The settings of the HTTP server program.

    `of_cluster` says whether `/metrics` covers other servers too.
    """

    of_cluster: ClassVar[bool] = False
    http: HTTPSettings = group(HTTPSettings)

    def is_authenticated(self, access: Access) -> bool:
        """Return whether every client must show a key or a certificate."""
        return access.keys is not None or self.access.tls_client_ca is not None

    def guards(self) -> list[Middleware]:
        """Return the middlewares that every request passes first."""
        return []
