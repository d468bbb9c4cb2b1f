"""Who may use this server and how much of it: the operator's files of keys and tenants, read at the start and whenever they change."""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from frontends.files import follow
from frontends.keys import Key, Keys, read_keys
from llmserve import ConfigurationError, TenantLimits, TenantTable

KEY_VARIABLE = "LLMSERVE_API_KEY"


@attrs.define
class Access:
    """`keys` None: nobody is asked. `table` is for admission."""

    keys: Keys | None = None
    table: TenantTable = attrs.field(factory=TenantTable)
    _files: tuple[Path | None, Path | None] = None, None
    _base: TenantTable = attrs.field(factory=TenantTable)

    @classmethod
    def open(cls, options: argparse.Namespace) -> "Access":
        """What `--api-keys`, `--tenants`, `--tenant-limit` and the environment say. Raises ConfigurationError, naming which is wrong."""
        secret = os.environ.get(KEY_VARIABLE)
        if secret and options.api_keys:
            raise ConfigurationError(f"--api-keys and {KEY_VARIABLE} are two ways to say who may ask: use one of them")
        access = cls(files=(options.api_keys, options.tenants), base=TenantTable(default=TenantLimits(concurrency=options.tenant_limit)))
        access._read()
        if secret:
            access.keys = Keys.single(secret)
        return access

    def find(self, secret: str) -> Key | None:
        """Whose key it is; None for nobody's, or one that has expired."""
        return self.keys.find(secret, time.time()) if self.keys is not None else None

    def still(self, key: Key | None) -> bool:
        """Whether what a connection has shown once still counts."""
        return self.keys is None or (key is not None and self.keys.holds(key, time.time()))

    async def follow(self, apply: Callable[[TenantTable], None] = lambda _: None, *, quiet: bool = False) -> None:
        """Take the files in anew whenever one changes, and `apply` the table. What is wrong is told of once, and what was good stays in
        force; requests that are open go on in any case."""

        def read() -> None:
            self._read()
            apply(self.table)

        await follow([path for path in self._files if path is not None], read, "access", quiet=quiet)

    def _read(self) -> None:
        keys_file, tenants_file = self._files
        table = read_tenants(tenants_file) if tenants_file else self._base
        keys = read_keys(keys_file) if keys_file else None
        if keys is not None:
            try:
                table = keys.tenants(table)
            except ConfigurationError as error:
                raise ConfigurationError(f"--api-keys {keys_file}: {error}") from None
            self.keys = keys
        self.table = table


def read_tenants(path: Path) -> TenantTable:
    """Raises ConfigurationError, naming the file and what is wrong in it."""
    try:
        return TenantTable.parse(path.read_text())
    except (OSError, UnicodeDecodeError, ConfigurationError) as error:
        raise ConfigurationError(f"--tenants {path}: {error}") from None
