"""The server's certificate, and whose certificates clients must show: the operator's files, read at the start and whenever they change."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import anyio
import attrs

from frontends.files import follow
from llmserve import ConfigurationError


@attrs.define
class TLS:
    """What `--tls-cert`, `--tls-key` and `--tls-client-ca` say. Raises ConfigurationError for files that are not there or do not fit.

    `context` is for the next connection, those that are open keep theirs.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    context: ssl.SSLContext = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.read()

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, client_ca: Path | None = None) -> Self | None:
        """None without any of them; with a `client_ca`, clients show a certificate of it. Raises ConfigurationError."""
        if certificate and key:
            return cls(certificate, key, client_ca)
        if certificate or key or client_ca:
            raise ConfigurationError("TLS needs both --tls-cert and --tls-key")
        return None

    def read(self) -> None:
        """A context of its own each time: one that is in use would be left with half of a pair that does not fit."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"TLS with {self.certificate} and {self.key}: {error}") from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(f"--tls-client-ca {self.client_ca}: {error}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        self.context = context

    async def follow(self, *, quiet: bool = False) -> None:
        """Take the files in anew whenever one changes; what is wrong with them is told of, and what was good stays in force."""
        files = [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]
        await follow(files, self.read, "tls", quiet=quiet)


@asynccontextmanager
async def followed(tls: TLS | None, *, quiet: bool = False) -> AsyncIterator[None]:
    """Follow it meanwhile."""
    following = asyncio.get_running_loop().create_task(tls.follow(quiet=quiet)) if tls is not None else None
    try:
        yield
    finally:
        if following is not None:
            following.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([following])
