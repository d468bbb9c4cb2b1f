"""The guard's own process: it kills the guarded processes when their host has ended.

It runs as a file, with only the standard library, so it starts in some ten milliseconds. The host
sends lines: the id of a process to guard, the path of a folder to remove after the host's end, or
NO_MORE. The reaper ends when the host or all guarded processes have ended.
"""

import os
import select
import shutil
import signal
import sys
from contextlib import suppress

NO_MORE = 0


class ProcessReaper:
    """Holds a pidfd for each guarded process, because its number may be reused later."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._folders: list[str] = []
        self._read = b""
        self._more = True

    def guard(self, host: int) -> None:
        """Wait until all guarded processes have ended; kill them if the host ends first."""
        try:
            end = os.pidfd_open(host)
        except ProcessLookupError:
            end = -1
        # The host may have ended during this start, and its number may already be reused.
        gone = end < 0 or os.getppid() != host
        # Folders count too: the host's end of the pipe closes a moment before its exit is visible.
        while self._more or self._pids or self._folders:
            told = [0] if self._more else []
            ready, _, _ = select.select([*told, *self._pids, *([] if gone else [end])], [], [], 0 if gone else None)
            # Read first: the last lines of a host that has ended are still in the pipe.
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
        # An empty read means that the pipe was closed without NO_MORE. The host's other children
        # may hold it open longer.
        self._more = bool(told)
        *lines, self._read = (self._read + told).split(b"\n")
        for line in lines:
            if line.startswith(b"/"):
                self._folders.append(os.fsdecode(line))
            elif int(line) == NO_MORE:
                # The host removed the folders itself.
                self._more, self._folders = False, []
            else:
                with suppress(ProcessLookupError):
                    self._pids[os.pidfd_open(int(line))] = int(line)

    def _kill(self) -> None:
        for descriptor, pid in self._pids.items():
            # Kill the workers first: one that hangs would not notice the loss of its core, and
            # would keep the GPU.
            for child in descendants(pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # The fields after the command, which is in brackets and may contain any bytes, are the
            # state and the parent.
            children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    found = list(children.get(pid, ()))
    for one in found:
        found += children.get(one, ())
    return found


if __name__ == "__main__":
    ProcessReaper().guard(int(sys.argv[1]))
