"""Where a raw socket listens, and where its client goes: tcp://host:port, tls://host:port, unix:///path."""

import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import attrs

from llmserve import ConfigurationError

SCHEMES = ("tcp", "tls", "unix")


@attrs.frozen
class Address:
    """`host` and `port`, or the `path` of a unix socket."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Raises ConfigurationError, naming the address."""
    wrong = ConfigurationError(f"{text!r} is no address: use tcp://host:port, tls://host:port or unix:///path")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in SCHEMES or parts.query or parts.fragment:
        raise wrong
    if parts.scheme == "unix":
        return _unix(parts, wrong)
    if not parts.hostname or port is None or parts.path not in ("", "/"):
        raise wrong
    return Address(parts.scheme, parts.hostname, port)


def _unix(parts: SplitResult, wrong: ConfigurationError) -> Address:
    if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
        raise wrong
    return Address("unix", path=parts.path)


def server_context(certificate: Path | None, key: Path | None, client_ca: Path | None = None) -> ssl.SSLContext | None:
    """What `--tls-cert`, `--tls-key` and `--tls-client-ca` say; None without them. With a `client_ca`, clients show a certificate of it.

    Raises ConfigurationError for files that are not there or do not fit.
    """
    if not certificate or not key:
        if certificate or key or client_ca:
            raise ConfigurationError("TLS needs both --tls-cert and --tls-key")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS with {certificate} and {key}: {error}") from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"--tls-client-ca {client_ca}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
