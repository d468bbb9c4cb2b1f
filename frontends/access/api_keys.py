"""API keys: what the file with them says, and who shows which. The file holds hashes alone; `python -m frontends.aiohttp_app keys add`.

A key is 32 random bytes, so its SHA-256 needs neither salt nor stretching: those make guessing slow what people make up.
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

# Scanners for leaked secrets know keys by a beginning of their own.
PREFIX = "lls_"
SECRET_BYTES = 32
# Longer than any key; what is longer is not even hashed.
MAX_CHARACTERS = 256
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
LIMITS = ("weight", "concurrency", "tokens_per_minute")
FIELDS = ("sha256", "tenant", "expires", *LIMITS)


@attrs.frozen
class Key:
    """Who has shown it: `tenant` is whom the requests are counted for, None whom they name themselves. `expires` is seconds since 1970."""

    id: str
    digest: bytes = attrs.field(repr=False)
    tenant: str | None
    expires: float | None = None
    limits: TenantLimits | None = None

    def is_over(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires


class Keys:
    """All that are let in."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_digest.values())

    @classmethod
    def single(cls, secret: str) -> "Keys":
        """One for everybody, who say themselves which tenant they are."""
        return cls([Key("single", digest(secret), None)])

    @classmethod
    def parse(cls, text: str) -> "Keys":
        """From TOML: a table `[keys.ID]` for each. Raises ConfigurationError, naming what is wrong."""
        found = read_toml(text)
        if not found:
            # An empty file is one that a full disk has cut before it is the wish to lock all clients out.
            raise ConfigurationError("it has no keys; to let no client in, write the line [keys]")
        entries = found.pop("keys", {})
        if found or not isinstance(entries, dict):
            raise ConfigurationError(f"unknown key {next(iter(found), 'keys')!r}; there are only tables, [keys.ID]")
        keys = [_key(name, entry) for name, entry in entries.items()]
        if len({key.digest for key in keys}) < len(keys):
            raise ConfigurationError("two keys have the same sha256")
        return cls(keys)

    def find(self, secret: str, now: float) -> Key | None:
        """The key that this is, unless it has expired by `now`, in seconds since 1970.

        It is found by its digest, which nobody can choose: how long a wrong one takes tells nothing of a right one.
        """
        if len(secret) > MAX_CHARACTERS:
            return None
        shown = digest(secret)
        key = self._by_digest.get(shown)
        if key is None or not hmac.compare_digest(key.digest, shown):
            return None
        return None if key.is_over(now) else key

    def holds(self, key: Key, now: float) -> bool:
        """Whether a key that was shown before is still one of these."""
        found = self._by_digest.get(key.digest)
        return found is not None and not found.is_over(now)

    def tenants(self, others: TenantTable) -> TenantTable:
        """The table with these keys' limits beside the others. Raises ConfigurationError where two say something about one tenant."""
        named: dict[str, TenantLimits] = {}
        for key in self:
            if key.tenant is None or key.limits is None:
                continue
            if key.tenant in others.named or named.get(key.tenant, key.limits) != key.limits:
                raise ConfigurationError(f"keys.{key.id} gives the tenant {key.tenant!r} other limits than it has already")
            named[key.tenant] = key.limits
        # A tenant that a key stands for is known, also where unknown ones are refused.
        for key in self:
            if key.tenant is not None and others.default is None and key.tenant not in others.named:
                named.setdefault(key.tenant, TenantLimits())
        return TenantTable(others.named | named, others.default)


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def read_keys(path: Path) -> Keys:
    """Raises ConfigurationError, naming the file and what is wrong in it."""
    try:
        text, mode = read_text(path)
        keys = Keys.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"--api-keys {path}: {error}") from error.__cause__
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(f"--api-keys {path}: others than its owner can write it: chmod 600")
    return keys


def add_key(path: Path, name: str, fields: dict[str, Any]) -> str:
    """Make a key and write its hash to the file, which is made if there is none; returns the key, which is nowhere else.

    `fields` are those of the key's table beside its hash. Raises ConfigurationError, with the file as it was.
    """
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    values = {"sha256": digest(secret).hex()} | {field: value for field, value in fields.items() if value is not None}
    table = "".join(f"{field} = {_toml(value)}\n" for field, value in values.items())
    before = _text(path)
    if before and any(key.id == name for key in read_keys(path)):
        raise ConfigurationError(f"--api-keys {path}: there is a key {name!r} already")
    text = (before + "\n\n" if before else "") + f'[keys."{name}"]\n{table}'
    Keys.parse(text).tenants(TenantTable())
    # Whole or not at all, under the eyes of a server that reads it.
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
    """What is in a file of keys so far; nothing if there is none."""
    try:
        return read_text(path)[0].rstrip() if path.exists() else ""
    except ConfigurationError as error:
        raise ConfigurationError(f"--api-keys {path}: {error}") from None


def _key(name: str, entry: Any) -> Key:
    where = f"keys.{name[:64]}"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: an id has 1 to 64 letters, digits, dots, dashes and underscores")
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} must be a table")
    for field in entry:
        if field not in FIELDS:
            raise ConfigurationError(f"{where} has the unknown key {field!r}; there are {', '.join(FIELDS)}")
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
    # A time without a zone is UTC, wherever the server is.
    try:
        return (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        raise ConfigurationError(f"{where}.expires must be between the years 1 and 9999 in UTC") from None


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
