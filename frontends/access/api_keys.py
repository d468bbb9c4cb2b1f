"""API keys and their file, which holds only hashes: `python -m frontends.aiohttp_app keys add`.

A key is 32 random bytes, so its SHA-256 needs neither salt nor stretching. Those protect secrets
that people choose.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import attrs

from frontends.net.file_watch import read_text
from llmserve import ConfigurationError, TenantLimits, TenantTable
from llmserve.config import read_toml

# The prefix lets scanners for leaked secrets recognize a key.
PREFIX = "lls_"
SECRET_BYTES = 32
# Maximum length of a key; longer input is rejected without being hashed.
MAX_CHARACTERS = 256
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
LIMITS = ("weight", "concurrency", "tokens_per_minute")
FIELDS = ("sha256", "tenant", "expires", *LIMITS)


@attrs.frozen
class Key:
    """An API key.

    Attributes:
        id: its name in the file and in logs.
        tenant: the tenant that its requests count for; None where each request names its tenant.
        expires: its expiry in seconds since 1970.
    """

    id: str
    digest: bytes = attrs.field(repr=False)
    tenant: str | None
    expires: float | None = None
    limits: TenantLimits | None = None

    def is_over(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires


class Keys:
    """The valid API keys."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_digest.values())

    @classmethod
    def single(cls, secret: str) -> "Keys":
        """Return a single key for all clients, whose requests name their tenants."""
        return cls([Key("single", digest(secret), None)])

    @classmethod
    def parse(cls, text: str) -> "Keys":
        """Parse TOML with a table `[keys.ID]` for each key. Raises ConfigurationError."""
        found = read_toml(text)
        if not found:
            # A full disk is a likelier cause of an empty file than the wish to lock all clients
            # out.
            raise ConfigurationError("the file has no keys; to let no client in, write the line [keys]")
        entries = found.pop("keys", {})
        if found or not isinstance(entries, dict):
            raise ConfigurationError(f"unknown key {next(iter(found), 'keys')!r}; the file may only have tables [keys.ID]")
        keys = [_key(name, entry) for name, entry in entries.items()]
        if len({key.digest for key in keys}) < len(keys):
            raise ConfigurationError("two keys have the same sha256")
        return cls(keys)

    def find(self, secret: str, now: float) -> Key | None:
        """Return the key with this secret, unless it has expired by `now`, in seconds since 1970.

        The lookup uses the secret's digest, which a client cannot choose. So the time that a wrong
        secret takes reveals nothing about a valid one.
        """
        if len(secret) > MAX_CHARACTERS:
            return None
        shown = digest(secret)
        key = self._by_digest.get(shown)
        if key is None or not hmac.compare_digest(key.digest, shown):
            return None
        return None if key.is_over(now) else key

    def holds(self, key: Key, now: float) -> bool:
        """Return whether a key that a client has shown before is still one of these."""
        found = self._by_digest.get(key.digest)
        return found is not None and not found.is_over(now)

    def tenants(self, others: TenantTable) -> TenantTable:
        """Return the table of `others` with these keys' limits added.

        Raises ConfigurationError where a tenant would get two different limits.
        """
        named: dict[str, TenantLimits] = {}
        for key in self:
            if key.tenant is None or key.limits is None:
                continue
            if key.tenant in others.named or named.get(key.tenant, key.limits) != key.limits:
                raise ConfigurationError(f"keys.{key.id} gives the tenant {key.tenant!r} limits that differ from its other limits")
            named[key.tenant] = key.limits
        # A key's tenant counts as known where unknown tenants are refused.
        for key in self:
            if key.tenant is not None and others.default is None and key.tenant not in others.named:
                named.setdefault(key.tenant, TenantLimits())
        return TenantTable(others.named | named, others.default)


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def read_keys(path: Path) -> Keys:
    """Read a file of keys. Raises ConfigurationError, which names the file and the problem."""
    try:
        text, mode = read_text(path)
        keys = Keys.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"--api-keys {path}: {error}") from error.__cause__
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(f"--api-keys {path}: the file is writable by users other than its owner; run chmod 600")
    return keys


def add_key(path: Path, name: str, fields: dict[str, Any]) -> str:
    """Create a key, add its hash to the file, and return the key, which is stored nowhere else.

    The file is created if it does not exist. `fields` are the other fields of the key's table.
    Raises ConfigurationError and then leaves the file unchanged.
    """
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    values = {"sha256": digest(secret).hex()} | {field: value for field, value in fields.items() if value is not None}
    table = "".join(f"{field} = {_toml(value)}\n" for field, value in values.items())
    before = _text(path)
    if before and any(key.id == name for key in read_keys(path)):
        raise ConfigurationError(f"--api-keys {path}: the key {name!r} already exists")
    text = (before + "\n\n" if before else "") + f'[keys."{name}"]\n{table}'
    Keys.parse(text).tenants(TenantTable())
    # Replaced atomically: a server may be reading the file.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigurationError(f"--api-keys {path}: {error}") from None
    return secret


def _text(path: Path) -> str:
    """Return the text of a file of keys; empty if the file does not exist."""
    try:
        return read_text(path)[0].rstrip() if path.exists() else ""
    except ConfigurationError as error:
        raise ConfigurationError(f"--api-keys {path}: {error}") from None


def _key(name: str, entry: Any) -> Key:
    where = f"keys.{name[:64]}"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: an id must have 1 to 64 letters, digits, dots, dashes and underscores")
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} must be a table")
    for field in entry:
        if field not in FIELDS:
            raise ConfigurationError(f"{where} has the unknown key {field!r}; use {', '.join(FIELDS)}")
    sha256 = entry.get("sha256")
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ConfigurationError(f"{where}.sha256 must be 64 hexadecimal digits: the SHA-256 of the key")
    tenant = entry.get("tenant", name)
    if not isinstance(tenant, str) or not _NAME.fullmatch(tenant):
        raise ConfigurationError(f"{where}.tenant must have 1 to 64 letters, digits, dots, dashes and underscores")
    limits = {field: entry[field] for field in LIMITS if field in entry}
    return Key(
        name, bytes.fromhex(sha256), tenant, _seconds(where, entry.get("expires")), TenantLimits.of(where, limits) if limits else None
    )


def _seconds(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{where}.expires must be a date or a time, such as 2027-01-31")
    # A time without a zone is UTC, regardless of the server's time zone.
    try:
        return (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        raise ConfigurationError(f"{where}.expires must be between the years 1 and 9999 in UTC") from None


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
