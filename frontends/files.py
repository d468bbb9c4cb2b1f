"""An operator's files, which hold as soon as they are saved."""

from collections.abc import Callable, Sequence
from pathlib import Path

import anyio

from frontends.startup import say
from llmserve import ConfigurationError

# A look at a file's time costs microseconds; an operator who has saved it looks up after about as long.
LOOK_SECONDS = 1.0


async def follow(files: Sequence[Path], read: Callable[[], None], name: str, *, quiet: bool = False) -> None:
    """Call `read` whenever one of them changes. What is wrong, by its ConfigurationError, is told of once."""
    tell = (lambda _: None) if quiet else say
    seen = [_mark(path) for path in files]
    while files:
        await anyio.sleep(LOOK_SECONDS)
        marks = [_mark(path) for path in files]
        changed = [path for path, before, now in zip(files, seen, marks, strict=True) if before != now]
        seen = marks
        if not changed:
            continue
        try:
            read()
        except ConfigurationError as error:
            tell(f"{name:<9} not changed: {error}")
        else:
            tell(f"{name:<9} {', '.join(map(str, changed))} holds from now on")


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
