"""Ends an engine's processes when their host has ended, however it did: after a `kill -9` nobody else would, and they would keep the GPU.

A process of a few megabytes that waits for the host's end, or for theirs. A death signal (Linux's PR_SET_PDEATHSIG) comes already when the
thread ends that had started them, and a pipe is held open by whatever else the host has forked.
"""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The engine's processes are gone when this is waited for.
LEAVE_SECONDS = 5.0
# How often it is looked whether a launch has started a process; nobody is guarded for so long.
LOOK_SECONDS = 0.02
NO_MORE = 0


class Guard:
    """Of processes of this host's; does nothing where the system has no pidfds (Linux before 5.3, and others)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told: set[int] = set()
        if hasattr(os, "pidfd_open"):
            # Isolated, and as a file: it needs nothing but the standard library, and starts in some ten milliseconds.
            words = [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid())]
            # In a session of its own, or Ctrl-C would end it before what it guards.
            self._process = subprocess.Popen(words, start_new_session=True, stdin=subprocess.PIPE, bufsize=0)  # noqa: S603 - this file

    def watch(self, pids: Iterable[int]) -> None:
        """From now on these too."""
        for pid in set(pids) - self._told:
            self._told.add(pid)
            self._tell(pid)

    @contextmanager
    def launching(self, name: str) -> Iterator[None]:
        """While something is launched that takes long and says late which processes it has: those of multiprocessing's whose names begin
        like this."""
        over = threading.Event()
        others = {child.pid for child in multiprocessing.active_children()}

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                self._watch_children(name, others)

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
            self._watch_children(name, others)

    def _watch_children(self, name: str, others: set[int | None]) -> None:
        found = [child for child in multiprocessing.active_children() if child.name.startswith(name)]
        self.watch(child.pid for child in found if child.pid is not None and child.pid not in others)

    def _tell(self, pid: int) -> None:
        if self._process is not None and self._process.stdin is not None:
            # One that somebody has killed guards nobody.
            with suppress(OSError):
                self._process.stdin.write(b"%d\n" % pid)

    def close(self) -> None:
        """To be called when they have ended. Blocks for a moment."""
        if self._process is None:
            return
        self._tell(NO_MORE)
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


class Wards:
    """Who is guarded, in the guard's own process. Told by lines from the host, each a process's id, or that there will be no more."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._read = b""
        self._more = True

    def guard(self, host: int) -> None:
        """Until all of them have ended, or until the host has: then they are killed."""
        try:
            end = os.pidfd_open(host)
        except ProcessLookupError:
            end = -1
        # It may have ended while this one started, and its number may be another one's by now.
        gone = end < 0 or os.getppid() != host
        while self._more or self._pids:
            told = [0] if self._more else []
            ready, _, _ = select.select([*told, *self._pids, *([] if gone else [end])], [], [], 0 if gone else None)
            # First: what a host that has ended said at last is there to be read.
            if 0 in ready:
                self._listen()
            if gone or end in ready:
                self._kill()
                return
            for ended in set(ready) & set(self._pids):
                del self._pids[ended]
                os.close(ended)

    def _listen(self) -> None:
        told = os.read(0, 65_536)
        # Closed, without a word: whoever else has it open keeps it open.
        self._more = bool(told)
        *lines, self._read = (self._read + told).split(b"\n")
        for pid in map(int, lines):
            if pid == NO_MORE:
                self._more = False
                continue
            with suppress(ProcessLookupError):
                self._pids[os.pidfd_open(pid)] = pid

    def _kill(self) -> None:
        for descriptor in self._pids:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)


if __name__ == "__main__":
    Wards().guard(int(sys.argv[1]))
