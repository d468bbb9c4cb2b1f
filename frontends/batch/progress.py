"""The progress of a batch on standard error: a bar in a terminal, else a line from time to time."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

import anyio
from tqdm import tqdm

from frontends.batch.journal import Done
from frontends.logs.operator_log import is_json, say
from frontends.logs.standard_streams import terminal_columns

# Seconds between two lines where standard error is not a terminal.
LINE_SECONDS = 30.0
SHAPE = "llmserve  batch     {n_fmt}/{total_fmt} lines {bar:30} {rate_fmt}, {remaining} left{postfix}"


class Progress:
    """The progress of one batch.

    Args:
        done: the lines that are done.
        total: the number of lines.
    """

    def __init__(self, done: Done, total: int) -> None:
        self._done = done
        self._total = total
        self._before = len(done)
        self._began = time.monotonic()
        self._bar: tqdm[Never] | None = None

    @contextmanager
    def shown(self) -> Iterator["Progress"]:
        """Show a bar, if standard error is a terminal."""
        columns = None if is_json() else terminal_columns()
        if columns is None:
            yield self
            return
        with tqdm(total=self._total, initial=self._before, bar_format=SHAPE, ncols=columns, unit=" lines", file=sys.stderr) as self._bar:
            yield self

    async def tell(self) -> None:
        """Log a line every `LINE_SECONDS`, if there is no bar."""
        while self._bar is None:
            await anyio.sleep(LINE_SECONDS)
            say(f"batch     {self}")

    def step(self) -> None:
        """Note a line that is done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._done.failed} failed" if self._done.failed else "", refresh=False)
            self._bar.update()

    def __str__(self) -> str:
        new = len(self._done) - self._before
        rate = new / max(time.monotonic() - self._began, 1e-9)
        left = f", {(self._total - len(self._done)) / rate:.0f} s left" if new and len(self._done) < self._total else ""
        return f"{len(self._done)}/{self._total} lines, {self._done.failed} failed, {rate:.1f}/s{left}"
