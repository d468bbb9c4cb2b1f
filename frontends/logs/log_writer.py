"""Writes a log from a thread, so that a pipe without a reader or a full disk only costs log lines.

Python's QueueHandler and QueueListener do this for log records, but wait for their queue at exit.
The output of the engine's processes is bytes, not log records.
"""

import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Maximum bytes that wait to be written, per log: some 4,000 lines of the request log, or a tenth of
# a second at full load.
MAX_BYTES = 2**20
# Maximum bytes of one write to a file, which appends one write as a whole.
FILE_BYTES = 64 * 1024
# Seconds for which lines are collected before they are written. Waking the thread for each line
# would cost the event loop 0.1 ms per line.
COLLECT_SECONDS = 0.05
# Seconds between two checks for a renamed log file, which logrotate and `mv` cause.
LOOK_SECONDS = 1.0
# Maximum seconds to wait for a slow reader at the program's exit.
CLOSE_SECONDS = 1.0

SLOW = "they came faster than they could be written"

_lock = threading.Lock()
_dropped: dict[str, int] = {}


def dropped_lines() -> dict[str, int]:
    """Return the number of lines that this process has lost since it started, by the log's name."""
    with _lock:
        return dict(_dropped)


class LogWriter:
    """Takes bytes without blocking and writes them later from a thread.

    Bytes without room are dropped, and their lines are counted under `name`. The writer owns the
    descriptor `file`. It reopens `path` when `path` no longer leads to that file. `report` gets a
    line of text when writing fails and when it succeeds again.
    """

    def __init__(self, name: str, file: int, report: Callable[[str], None], path: Path | None = None) -> None:
        self._name, self._file, self._report, self._path = name, file, report, path
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._closing = False
        self._most_at_once = FILE_BYTES if stat.S_ISREG(os.fstat(file).st_mode) else select.PIPE_BUF
        # Lines lost since the last report, and the reason.
        self._lost, self._reason = 0, ""
        self.failing = False
        # Whether the last dropped piece and the last kept piece ended within a line, and whether a
        # piece was dropped since the last kept one.
        self._dropped_part = self._kept_part = self._gap = False
        # Whether the last write ended within a line.
        self._torn = False
        with _lock:
            _dropped.setdefault(name, 0)
        self._thread = threading.Thread(target=self._run, name=f"log {name}", daemon=True)
        self._thread.start()

    def __call__(self, data: bytes) -> None:
        with self._lock:
            if self._dropped_part:
                # The beginning of this line was dropped, so its end is too.
                _, newline, data = data.partition(b"\n")
                self._dropped_part = not newline
                self._lose(len(newline), SLOW)
            if not data:
                return
            if self._closing or self._held + len(data) > MAX_BYTES:
                self._lose(data.count(b"\n"), SLOW)
                self._dropped_part, self._gap = not data.endswith(b"\n"), True
                return
            if self._gap and self._kept_part:
                data = b"\n" + data
            self._kept_part, self._gap = not data.endswith(b"\n"), False
            self._pieces.append(data)
            self._held += len(data)
        # The thread clears the event before it takes pieces, so it misses no piece.
        if not self._wake.is_set():
            self._wake.set()

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Write the waiting bytes within `seconds`; return whether all of them were tried."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._wake.wait(LOOK_SECONDS if self._path is not None else None)
            if not self._closing:
                time.sleep(COLLECT_SECONDS)
            self._wake.clear()
            self._follow_path()
            while data := self._next():
                self._write(data)
            if self._closing:
                break
        if self._path is not None:
            os.close(self._file)

    def _next(self) -> bytes:
        """Return some whole pieces.

        A pipe gets no more than it takes at once, so that lines of several processes do not mix.
        """
        with self._lock:
            data = [self._pieces.popleft()] if self._pieces else []
            size = sum(map(len, data))
            while self._pieces and size + len(self._pieces[0]) <= self._most_at_once:
                size += len(self._pieces[0])
                data.append(self._pieces.popleft())
        return b"".join(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(b"\n" + data if self._torn else data)
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError as error:
            self._torn = self._torn or len(rest) < len(data)
            with self._lock:
                self._lose(bytes(rest).count(b"\n"), error.strerror or str(error))
            # Standard error cannot carry the report of its own failure.
            if not self.failing and self._name != "stderr":
                self._report(f"log       {self._name} cannot be written: {error.strerror}; its lines are lost until writing succeeds")
            self.failing = True
        else:
            self.failing = self._torn = False
            self._report_loss()
        finally:
            with self._lock:
                self._held -= len(data)

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._file, data)
        except BlockingIOError:
            # Another process that shares the file has set it to non-blocking.
            select.select([], [self._file], [])
            return 0

    def _report_loss(self) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            self._report(f"log       {lost:,} lines of {self._name} were lost: {self._reason}")

    def _lose(self, lines: int, reason: str) -> None:
        self._lost += lines
        self._reason = reason
        with _lock:
            _dropped[self._name] += lines

    def _follow_path(self) -> None:
        """Reopen the path if the file was renamed or deleted.

        Until that succeeds, the old file is written.
        """
        if self._path is None:
            return
        with suppress(OSError):
            now = os.fstat(self._file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), now):
                    return
            new = open_appending(self._path)
            os.dup2(new, self._file, inheritable=False)
            os.close(new)


def open_appending(path: Path) -> int:
    """Return a descriptor that appends to the file; create the file for its owner only.

    Raises OSError, also for a FIFO without a reader.
    """
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NONBLOCK, 0o600)
    os.set_blocking(file, True)
    return file
