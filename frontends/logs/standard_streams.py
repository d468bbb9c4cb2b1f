"""Relays standard output and standard error from threads, so that no print or log line can block.

Descriptors 1 and 2 become pipes that a thread always reads. Unlike Python's logging, this covers
the engine's processes, `print`, tracebacks and libraries that write to the descriptors. Output just
before SIGKILL or an abort may be lost.
"""

import atexit
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from frontends.logs.log_writer import CLOSE_SECONDS, LogWriter

CHUNK = 64 * 1024
LOOK_SECONDS = 0.001
NAMES = {1: "stdout", 2: "stderr"}

_relays: list["Relay"] = []


class Relay:
    """Descriptors of one file, and a thread that reads their pipe into a LogWriter."""

    def __init__(self, numbers: list[int], report: Callable[[str], None]) -> None:
        self._numbers = numbers
        self.real = os.dup(numbers[0])
        self._writer = LogWriter(NAMES[numbers[0]], self.real, report)
        self._source, sink = os.pipe()
        for number in numbers:
            os.dup2(sink, number)
        os.close(sink)
        # Held from reading the pipe until the writer has the bytes.
        self._passing = threading.Lock()
        threading.Thread(target=self._pass_on, name=f"relay {NAMES[numbers[0]]}", daemon=True).start()

    def _pass_on(self) -> None:
        open_ = True
        while open_:
            select.select([self._source], [], [])
            with self._passing:
                data = os.read(self._source, CHUNK)
                self._writer(data)
            open_ = bool(data)

    def close(self, until: float) -> None:
        """Write all output so far; later output goes directly, unless that would block or fail."""
        while time.monotonic() < until:
            with self._passing:
                if not select.select([self._source], [], [], 0)[0]:
                    break
            time.sleep(LOOK_SECONDS)
        if self._writer.close(max(0.0, until - time.monotonic())) and not self._writer.failing:
            for number in self._numbers:
                os.dup2(self.real, number)


def relay_standard_streams(report: Callable[[str], None]) -> None:
    """Relay the standard streams. `report` writes a line to standard error.

    Call this once, before the program prints or starts a process.
    """
    for number in (0, *NAMES):
        _open_if_closed(number)
    for number, name in NAMES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115 - for the life of the program
    # Two descriptors of one file get one pipe, which keeps the order of lines.
    groups = [[2, 1]] if os.path.sameopenfile(1, 2) else [[2], [1]]
    _relays.extend(Relay(numbers, report) for numbers in groups)
    # Registered first, so that it runs after all other exit handlers, which may print.
    atexit.register(write_rest, os.getpid())


def _open_if_closed(number: int) -> None:
    """Open the null device as a closed standard stream.

    Otherwise a socket could get the stream's number. It would then receive the log, or be closed as
    a child's standard input.
    """
    with suppress(OSError):
        os.fstat(number)
        return
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)


def terminal_columns() -> int | None:
    """Return the width of standard error's terminal; None if standard error is not a terminal."""
    real = _relays[0].real if _relays else 2
    with suppress(OSError):
        return os.get_terminal_size(real).columns if os.isatty(real) else None
    return None


def write_rest(process: int) -> None:
    """Write all output so far, within a time limit; later output goes directly.

    It does nothing in any process other than the one with this id.
    """
    if os.getpid() != process:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    until = time.monotonic() + CLOSE_SECONDS
    for relay in reversed(_relays):
        relay.close(until)
