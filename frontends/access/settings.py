"""The settings of access control: keys, certificates, limits on connections."""

import argparse
from pathlib import Path

import attrs

from frontends.access.control import KEY_VARIABLE
from frontends.net.receive_budget import LARGEST
from frontends.net.tls import TLS
from frontends.options.definitions import option
from frontends.options.parsers import count


def _budget(text: str) -> int:
    number = int(text)
    if number < LARGEST:
        raise argparse.ArgumentTypeError(f"{number} is less than the maximum size of one body or frame, {LARGEST} bytes")
    return number


@attrs.frozen(kw_only=True)
class AccessSettings:
    """Who may use a server, and with how many connections. Numbers are per process."""

    api_keys: Path | None = option(
        None,
        "require one of the API keys in this file (create them with `keys add`; reloaded on change); "
        f"the environment variable {KEY_VARIABLE} sets a single key instead",
        metavar="FILE.toml",
    )
    tls_cert: Path | None = option(None, "serve TLS with this certificate chain in PEM format", metavar="FILE")
    tls_key: Path | None = option(None, "private key of --tls-cert in PEM format", metavar="FILE")
    tls_client_ca: Path | None = option(None, "require client certificates issued by these authorities", metavar="FILE")
    max_connections: int | None = option(
        None, "maximum number of connections per process (default: the limit of open files minus 64)", metavar="N", parse=count
    )
    max_peer_connections: int | None = option(
        None,
        "maximum number of connections per process from one address; loopback is exempt (default: a quarter of --max-connections)",
        metavar="N",
        parse=count,
    )
    max_incomplete_bytes: int | None = option(
        None,
        "maximum total size in bytes of incomplete request bodies and frames per process (default: 64 MiB)",
        metavar="N",
        parse=_budget,
    )
    insecure: bool = option(
        False, "allow listening on a non-loopback address without authentication, or with an engine version that has known vulnerabilities"
    )

    def open_tls(self) -> TLS | None:
        """Read the certificates; None without any. Raises ConfigurationError."""
        return TLS.of(self.tls_cert, self.tls_key, self.tls_client_ca)
