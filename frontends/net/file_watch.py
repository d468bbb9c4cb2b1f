"""The operator's files, which are read at startup and reloaded whenever they change.

A file that cannot be read changes nothing.
"""

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
# Seconds between two looks at the files. A changed file is read when two looks have found it the
# same: a file that is being saved may be empty or incomplete.
LOOK_SECONDS = 0.4
# Room for 20,000 keys. A larger file is a mistake, and parsing it would block the interpreter for
# seconds.
MAX_BYTES = 4 * 2**20
# Maximum length of a reason in the log.
MAX_CHARACTERS = 500

Mark = tuple[int, ...] | None

_waiting: set[anyio.Event] = set()


def read_file(path: Path) -> tuple[bytes, int]:
    """Return a file's content and mode.

    Raises ConfigurationError for anything but a regular file of at most `MAX_BYTES`; an OSError is
    its cause. The file is opened without blocking: opening a FIFO would wait for its writer.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigurationError("the file is not a regular file")
            if found.st_size > MAX_BYTES:
                raise ConfigurationError(f"the file is larger than {MAX_BYTES:,} bytes")
            return file.read(MAX_BYTES), found.st_mode
    except OSError as error:
        raise ConfigurationError(f"the file cannot be read: {error.strerror}") from error


def read_text(path: Path) -> tuple[str, int]:
    """Return a file's text and mode. Raises ConfigurationError, also for text that is not UTF-8."""
    data, mode = read_file(path)
    try:
        return data.decode(), mode
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the file is not UTF-8 text: {error.reason} at byte {error.start}") from None


def marks(files: Sequence[Path]) -> list[Mark]:
    """Return values that change whenever one of the files changes."""
    return [_mark(path) for path in files]


def reread() -> None:
    """Reread all followed files of this process now, even unchanged ones."""
    for event in _waiting:
        event.set()


async def follow(
    files: Sequence[Path], seen: list[Mark], read: Callable[[], T], apply: Callable[[T], None], name: str, *, quiet: bool = False
) -> None:
    """Call `read` in a thread whenever a file has changed, and then `apply` with the result.

    `seen` are the files' marks of their last read. An error is logged once per change, and the
    result that was applied last stays in force. After an OSError the files are read again.
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
                # A file was saved while it was read. A later look finds it unchanged.
                continue
            apply(found)
        except Exception as error:  # No content of a file may stop the server.
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
    """Wait until the next look is due; return whether a signal has requested it."""
    asked = anyio.Event()
    _waiting.add(asked)
    try:
        with anyio.move_on_after(LOOK_SECONDS):
            await asked.wait()
    finally:
        _waiting.remove(asked)
    return asked.is_set()


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread: a network file system may block even `stat`."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
