"""Access control from the operator's files of API keys and tenants.

The files are read at startup and whenever they change.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from frontends.access.api_keys import Key, Keys, read_keys
from frontends.net.file_watch import Mark, follow, marks, read_text
from llmserve import ConfigurationError, TenantLimits, TenantTable

KEY_VARIABLE = "LLMSERVE_API_KEY"


@attrs.define
class Access:
    """The API keys and the tenants' limits.

    Attributes:
        keys: the API keys; None where requests need no key.
        table: the tenants' limits, for admission.
    """

    keys: Keys | None = None
    table: TenantTable = attrs.field(factory=TenantTable)
    _files: tuple[Path | None, Path | None] = None, None
    _base: TenantTable = attrs.field(factory=TenantTable)
    # The files' marks, taken before the files were read.
    _seen: list[Mark] = attrs.field(factory=list)

    @classmethod
    def open(cls, api_keys: Path | None = None, tenants: Path | None = None, tenant_limit: int | None = None) -> "Access":
        """Read `--api-keys`, `--tenants`, `--tenant-limit` and the environment.

        Raises ConfigurationError, which names the invalid one.
        """
        secret = os.environ.get(KEY_VARIABLE)
        if secret and api_keys:
            raise ConfigurationError(f"--api-keys and {KEY_VARIABLE} exclude each other: use one of them")
        base = TenantTable(default=TenantLimits(concurrency=tenant_limit))
        access = cls._of((api_keys, tenants), base)
        if secret:
            access.keys = Keys.single(secret)
        return access

    @classmethod
    def of_keys(cls, path: Path | None) -> "Access":
        """Read a file of API keys only. Raises ConfigurationError."""
        return cls._of((path, None), TenantTable())

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret; None if there is none or it has expired."""
        return self.keys.find(secret, time.time()) if self.keys is not None else None

    def still(self, key: Key | None) -> bool:
        """Return whether a key that a connection has shown before is still valid."""
        return self.keys is None or (key is not None and self.keys.holds(key, time.time()))

    def set_tenant_limit(self, limit: int | None) -> None:
        """Replace `--tenant-limit`, which a file of tenants overrides."""
        self._base = TenantTable(default=TenantLimits(concurrency=limit))
        if self._files[1] is None:
            self.table = self._base if self.keys is None else self.keys.tenants(self._base)

    async def follow(self, apply: Callable[[TenantTable], None] = lambda _: None, *, quiet: bool = False) -> None:
        """Reread the files whenever one changes, and `apply` the new table.

        An invalid file is logged once, and the last valid content stays in force. Open requests
        continue in any case.
        """

        def take(found: "Access") -> None:
            apply(found.table)
            self.table = found.table
            # A key from the environment is not in a file, and stays.
            if found.keys is not None:
                self.keys = found.keys

        await follow(self._paths, self._seen, lambda: Access._of(self._files, self._base), take, "access", quiet=quiet)

    @property
    def _paths(self) -> list[Path]:
        return [path for path in self._files if path is not None]

    @classmethod
    def _of(cls, files: tuple[Path | None, Path | None], base: TenantTable) -> "Access":
        keys_file, tenants_file = files
        seen = marks([path for path in files if path is not None])
        table = read_tenants(tenants_file) if tenants_file else base
        keys = read_keys(keys_file) if keys_file else None
        if keys is not None:
            try:
                table = keys.tenants(table)
            except ConfigurationError as error:
                raise ConfigurationError(f"--api-keys {keys_file}: {error}") from None
        return cls(keys, table, files, base, seen)


def read_tenants(path: Path) -> TenantTable:
    """Read a file of tenants. Raises ConfigurationError, which names the file and the problem."""
    try:
        return _tenants(read_text(path)[0])
    except ConfigurationError as error:
        raise ConfigurationError(f"--tenants {path}: {error}") from error.__cause__


def _tenants(text: str) -> TenantTable:
    if not any(line.partition("#")[0].strip() for line in text.splitlines()):
        # A full disk is a likelier cause of an empty file than the wish to set no limits.
        raise ConfigurationError("the file is empty; to set no limits, write the line [tenants]")
    return TenantTable.parse(text)
