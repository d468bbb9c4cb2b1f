"""The file with the tenants' weights and limits, read at the start and again whenever it has changed."""

from collections.abc import Callable
from pathlib import Path

import anyio

from frontends.startup import say
from llmserve import ConfigurationError, TenantTable

# A look at a file's time costs microseconds; an operator who has saved it looks up after about as long.
LOOK_SECONDS = 1.0


def read_tenants(path: Path) -> TenantTable:
    """Raises ConfigurationError, naming the file and what is wrong in it."""
    try:
        return TenantTable.parse(path.read_text())
    except (OSError, UnicodeDecodeError, ConfigurationError) as error:
        raise ConfigurationError(f"--tenants {path}: {error}") from None


async def follow_tenants(path: Path, apply: Callable[[TenantTable], None]) -> None:
    """Apply the file anew whenever it changes. One that is wrong is told of once, and the last good one stays in force."""
    seen = _mark(path)
    while True:
        await anyio.sleep(LOOK_SECONDS)
        mark = _mark(path)
        if mark == seen:
            continue
        seen = mark
        try:
            apply(read_tenants(path))
        except ConfigurationError as error:
            say(f"tenants   not changed: {error}")
        else:
            say(f"tenants   {path} holds from now on")


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
