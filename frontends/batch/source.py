"""The input of a batch: a file of lines, which is read in pieces and never held as a whole.

The check before the first request keeps some 130 bytes for each line, and frees them at its end.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio.to_thread
import attrs

from frontends.batch.journal import NO_DESCRIPTOR, Done, digest
from frontends.batch.lines import MAX_LINE, name_of
from llmserve import ConfigurationError

# Bytes that a thread reads at a time, and a line more.
PIECE = 2**18


def numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1. Raises OSError.

    Of a line that is longer than `MAX_LINE`, the rest is skipped.
    """
    with path.open("rb", buffering=2**20) as file:
        number = 0
        while text := file.readline(MAX_LINE + 1):
            number += 1
            rest = text
            while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE + 1)
            if text.strip():
                yield number, text


@attrs.frozen
class Checked:
    """An input that was checked: its number of lines."""

    path: Path
    total: int


async def remaining(checked: Checked, done: Done) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the lines that are not done; a thread reads them."""
    found = numbered(checked.path)
    while piece := await anyio.to_thread.run_sync(_piece, found):
        for number, text in piece:
            if number not in done:
                yield number, text


def _piece(found: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    lines, size = [], 0
    for line in found:
        lines.append(line)
        size += len(line[1])
        if size >= PIECE:
            break
    return lines


def check(path: Path, done: Done, most: int | None = None) -> Checked:
    """Check that no two lines have one name, and that the lines that are done are of this input.

    Call it in a thread. Raises ConfigurationError, which names the file and the lines, and OSError if
    there is no descriptor left.

    Args:
        path: the file.
        done: the lines that are done.
        most: the maximum number of lines; None sets no limit.
    """
    names: dict[int, int] = {}
    total = 0
    try:
        for number, text in numbered(path):
            total += 1
            if most is not None and total > most:
                raise ConfigurationError(f"{path} has more than {most} lines")
            name = name_of(text)
            if done.is_other(number, name):
                raise ConfigurationError(f"{path}, line {number}, is not the line that was answered before: resume with the same input")
            if name is not None and (first := names.setdefault(digest(name), number)) != number:
                raise ConfigurationError(f"{path}, lines {first} and {number}, have the same custom_id {name[:64]!r}")
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if not total:
        raise ConfigurationError(f"{path} has no lines")
    return Checked(path, total)
