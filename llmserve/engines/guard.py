"""Ends an engine's processes when their host has ended, however it did: after a `kill -9` nobody else would, and they would keep the GPU.

A process of a few megabytes that waits for the host's end, or for theirs. A death signal (Linux's PR_SET_PDEATHSIG) comes already when the
thread ends that had started them, and a pipe is held open by whatever else the host has forked.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# The engine's processes are gone when this is waited for.
LEAVE_SECONDS = 5.0


class Guard:
    """Of these processes of this host's; does nothing where the system has no pidfds (Linux before 5.3, and others)."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if pids and hasattr(os, "pidfd_open"):
            # Isolated, and as a file: it needs nothing but the standard library, and starts in some ten milliseconds.
            words = [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid()), *map(str, pids)]
            # In a session of its own, or Ctrl-C would end it before what it guards.
            self._process = subprocess.Popen(words, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603 - this file

    def close(self) -> None:
        """To be called when they have ended. Blocks for a moment."""
        if self._process is None:
            return
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def guard(host: int, pids: Sequence[int]) -> None:
    """Until all of them have ended, or until the host has: then they are killed."""
    wanted = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            wanted[os.pidfd_open(pid)] = pid
    try:
        end = os.pidfd_open(host)
    except ProcessLookupError:
        end = -1
    # The number may be another one's by now.
    while end >= 0 and os.getppid() == host and wanted:
        ready, _, _ = select.select([end, *wanted], [], [])
        if end in ready:
            break
        for ended in ready:
            del wanted[ended]
    for descriptor in wanted:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


if __name__ == "__main__":
    guard(int(sys.argv[1]), [int(word) for word in sys.argv[2:]])
