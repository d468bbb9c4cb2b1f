"""Standard output and standard error of a program and its children, passed on by threads: no print or log line can block or fail.

Descriptors 1 and 2 become pipes that are always read. This covers what Python's logging does not: the engine's own processes, `print`,
tracebacks and libraries that write by themselves. What a program prints just before SIGKILL or an abort may be lost.
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
    """Descriptors of one file, whose pipe a thread empties into a LogWriter."""

    def __init__(self, numbers: list[int], report: Callable[[str], None]) -> None:
        self._numbers = numbers
        self.real = os.dup(numbers[0])
        self._writer = LogWriter(NAMES[numbers[0]], self.real, report)
        self._source, sink = os.pipe()
        for number in numbers:
            os.dup2(sink, number)
        os.close(sink)
        # Held while what was read is not yet with the writer.
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
        """Write what was printed; then print directly again, unless that would block or fail."""
        while time.monotonic() < until:
            with self._passing:
                if not select.select([self._source], [], [], 0)[0]:
                    break
            time.sleep(LOOK_SECONDS)
        if self._writer.close(max(0.0, until - time.monotonic())) and not self._writer.failing:
            for number in self._numbers:
                os.dup2(self.real, number)


def relay_standard_streams(report: Callable[[str], None]) -> None:
    """Call it once, before anything is printed and any process is started. `report` writes a line to standard error."""
    for number in (0, *NAMES):
        _open_if_closed(number)
    for number, name in NAMES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115 - for the life of the program
    # Two descriptors of one file get one pipe, so that lines stay in their order.
    groups = [[2, 1]] if os.path.sameopenfile(1, 2) else [[2], [1]]
    _relays.extend(Relay(numbers, report) for numbers in groups)
    # Registered first, so it runs after all others, which may print.
    atexit.register(write_rest, os.getpid())


def _open_if_closed(number: int) -> None:
    """A socket that took the number of a stream would get the log, or be closed as a child's standard input."""
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
    """The width of the terminal that standard error is; None where it is none."""
    real = _relays[0].real if _relays else 2
    with suppress(OSError):
        return os.get_terminal_size(real).columns if os.isatty(real) else None
    return None


def write_rest(process: int) -> None:
    """Write what was printed, within a bound; at the end of the process with this id, which prints directly from then on."""
    if os.getpid() != process:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    until = time.monotonic() + CLOSE_SECONDS
    for relay in reversed(_relays):
        relay.close(until)
