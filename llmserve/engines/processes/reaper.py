"""The guard's own process: it waits for the end of its host, or of the processes that it guards, and kills those when the host has ended.

Run as a file, with nothing but the standard library, so that it starts in some ten milliseconds. Its host sends lines: the id of a process
to guard, the path of a folder to remove when the host has ended, or NO_MORE.
"""

import os
import select
import shutil
import signal
import sys
from contextlib import suppress

NO_MORE = 0


class ProcessReaper:
    """The guarded processes, by their pidfds: a number may be another process's by the time that it is used."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._folders: list[str] = []
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
        # A folder too: the host's end of the pipe closes a moment before its end shows.
        while self._more or self._pids or self._folders:
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
        # Closed, without a word: the host's other children may still have it open.
        self._more = bool(told)
        *lines, self._read = (self._read + told).split(b"\n")
        for line in lines:
            if line.startswith(b"/"):
                self._folders.append(os.fsdecode(line))
            elif int(line) == NO_MORE:
                # The host has removed the folders itself.
                self._more, self._folders = False, []
            else:
                with suppress(ProcessLookupError):
                    self._pids[os.pidfd_open(int(line))] = int(line)

    def _kill(self) -> None:
        for descriptor, pid in self._pids.items():
            # Its workers first: one that hangs would not notice that it has lost its core, and would keep the GPU.
            for child in descendants(pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """The processes that this one has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # After the command, which is in brackets and may have any bytes in it: the state, and the parent.
            children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    found = list(children.get(pid, ()))
    for one in found:
        found += children.get(one, ())
    return found


if __name__ == "__main__":
    ProcessReaper().guard(int(sys.argv[1]))
