"""An operator's files, which are read at the start and again whenever they change. What cannot be read changes nothing."""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from frontends.logs.operator_log import say
from llmserve import ConfigurationError

T = TypeVar("T")
# A file is read when two looks have found the same change: one that is being saved may be empty, or end anywhere.
LOOK_SECONDS = 0.4
# 20,000 keys. A file of more is a mistake, and parsing it would take the interpreter for seconds.
MAX_BYTES = 4 * 2**20
# Of a reason in the log.
MAX_CHARACTERS = 500

Mark = tuple[int, ...] | None

_waiting: set[anyio.Event] = set()


def read_file(path: Path) -> tuple[bytes, int]:
    """What is in a file, and its mode. Raises ConfigurationError for what is no regular file of a sensible size, by OSError's cause if any.

    Opened without waiting: the open of a FIFO would wait for its writer.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigurationError("it is not a regular file")
            if found.st_size > MAX_BYTES:
                raise ConfigurationError(f"it is larger than {MAX_BYTES:,} bytes")
            return file.read(MAX_BYTES), found.st_mode
    except OSError as error:
        raise ConfigurationError(f"it cannot be read: {error.strerror}") from error


def read_text(path: Path) -> tuple[str, int]:
    """The same of a text. Raises ConfigurationError also for what is not UTF-8."""
    data, mode = read_file(path)
    try:
        return data.decode(), mode
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None


def marks(files: Sequence[Path]) -> list[Mark]:
    """What changes whenever one of the files does."""
    return [_mark(path) for path in files]


def reread() -> None:
    """Read all followed files of this process now, whether they have changed or not."""
    for event in _waiting:
        event.set()


async def follow(
    files: Sequence[Path], seen: list[Mark], read: Callable[[], T], apply: Callable[[T], None], name: str, *, quiet: bool = False
) -> None:
    """Call `read` in a thread whenever one of the files differs from `seen`, the marks of when they were last read, and then `apply`.

    What goes wrong is reported once for each change, and what was applied last stays in force. After an OSError it is tried again.
    """
    report = (lambda _: None) if quiet else say
    last, told = seen, None
    while files:
        asked = await _wait()
        before, last = last, await _in_thread(lambda: marks(files))
        if not asked and (last == seen or last != before):
            continue
        try:
            found = await _in_thread(read)
            if await _in_thread(lambda: marks(files)) != last:
                # Saved while it was read. The next look finds it at rest.
                continue
            apply(found)
        except Exception as error:  # The server goes on with what it has, for any content of the files.
            problem = (last, str(error) or type(error).__name__)
            if problem != told or asked:
                report(f"{name:<9} not changed: {problem[1][:MAX_CHARACTERS]}")
            told = problem
            if not isinstance(error.__cause__, OSError):
                seen = last
        else:
            changed = [path for path, before_, now in zip(files, seen, last, strict=True) if before_ != now] or files
            report(f"{name:<9} reloaded {', '.join(map(str, changed))}")
            seen, told = last, None


async def _wait() -> bool:
    """Until it is time to look; returns whether a signal asked for it."""
    asked = anyio.Event()
    _waiting.add(asked)
    try:
        with anyio.move_on_after(LOOK_SECONDS):
            await asked.wait()
    finally:
        _waiting.remove(asked)
    return asked.is_set()


async def _in_thread(function: Callable[[], T]) -> T:
    """A network file system may keep even a look at a file waiting."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
