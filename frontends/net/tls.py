"""TLS settings from the operator's files: the server's certificate and the CAs of its clients.

The files are read at startup and whenever they change.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import anyio
import attrs

from frontends.net.file_watch import Mark, follow, marks, read_file
from llmserve import ConfigurationError


@attrs.define
class TLS:
    """The settings of `--tls-cert`, `--tls-key` and `--tls-client-ca`.

    Raises ConfigurationError for files that are missing or do not match. `context` is for new
    connections; open connections keep their context.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    context: ssl.SSLContext = attrs.field(init=False)
    _seen: list[Mark] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._seen = marks(self._files)
        self.context = self._read()

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, client_ca: Path | None = None) -> Self | None:
        """Return the settings, or None without any file. Raises ConfigurationError.

        With `client_ca`, clients must show a certificate that it has issued.
        """
        if certificate and key:
            return cls(certificate, key, client_ca)
        if certificate or key or client_ca:
            raise ConfigurationError("TLS requires both --tls-cert and --tls-key")
        return None

    def _read(self) -> ssl.SSLContext:
        """Return a new context.

        Loading a mismatched pair of files into the current context would leave it with half of the
        pair.
        """
        for path in self._files:
            self._check(path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without a password OpenSSL would prompt for one on the terminal and block.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"TLS with {self.certificate} and {self.key}: {error}") from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"--tls-client-ca {self.client_ca}: {error}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @property
    def _files(self) -> list[Path]:
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]

    def _check(self, path: Path) -> None:
        """Check that a file can be read: OpenSSL would read a FIFO or a device without end."""
        try:
            read_file(path)
        except ConfigurationError as error:
            what = f"--tls-client-ca {path}" if path == self.client_ca else f"TLS with {self.certificate} and {self.key}: {path}"
            raise ConfigurationError(f"{what}: {error}") from error.__cause__

    def _take(self, context: ssl.SSLContext) -> None:
        self.context = context

    async def follow(self, *, quiet: bool = False) -> None:
        """Reread the files whenever one changes.

        Invalid files are logged, and the last valid settings stay in force.
        """
        await follow(self._files, self._seen, self._read, self._take, "tls", quiet=quiet)


@asynccontextmanager
async def followed(tls: TLS | None, *, quiet: bool = False) -> AsyncIterator[None]:
    """Follow the files while this context is entered."""
    following = asyncio.get_running_loop().create_task(tls.follow(quiet=quiet)) if tls is not None else None
    try:
        yield
    finally:
        if following is not None:
            following.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([following])
