"""Addresses of raw-socket servers: tcp://host:port, tls://host:port, unix:///path."""

from urllib.parse import SplitResult, urlsplit

import attrs

from frontends.net.listeners import authority
from llmserve import ConfigurationError

SCHEMES = ("tcp", "tls", "unix")


@attrs.frozen
class Address:
    """An address: `host` and `port`, or the `path` of a unix socket."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        return f"{self.scheme}://{authority(self.host, self.port)}"


def parse_address(text: str) -> Address:
    """Parse an address. Raises ConfigurationError, which names the address."""
    wrong = ConfigurationError(f"{text!r} is not a valid address: use tcp://host:port, tls://host:port or unix:///path")
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
