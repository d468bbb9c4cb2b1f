"""Watches an engine's processes from launch to end, kills them, and removes what they leave behind.

They are killed on request, or when the host process has ended. After a `kill -9` of the host no
other process would end them, and they would keep the GPU. So a process of a few megabytes
(`reaper.py`) waits for the end of the host, or of the engine's processes. A death signal (Linux's
PR_SET_PDEATHSIG) would come too early: it comes when the thread that started the process ends. A
pipe would be held open by every process that the host has forked.
"""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmserve.engines.processes import shared_memory
from llmserve.engines.processes.reaper import NO_MORE
from llmserve.engines.processes.socket_files import FOLDER

if TYPE_CHECKING:
    import psutil

# Seconds to wait for the end of the engine's processes.
LEAVE_SECONDS = 5.0
# Seconds between two looks for new processes during a launch; a new process is unguarded for this
# long.
LOOK_SECONDS = 0.02
# Seconds between two looks for shared memory during a launch. If another program kills a process,
# only what was seen by then is removed.
NOTE_SECONDS = 1.0


class ProcessGuard:
    """Guards processes that this process has started.

    On systems without pidfds (such as Linux before 5.3) they may outlive a host that is killed.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told: set[int] = set()
        # The guarded processes with their descendants, and the shared memory that they have made.
        self._family: set[psutil.Process] = set()
        self._segments: set[str] = set()
        self._unwanted = False
        self.folder = Path(FOLDER.enter())
        if hasattr(os, "pidfd_open"):
            words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), str(os.getpid())]
            # The reaper has its own session. Otherwise Ctrl-C would end it before the processes
            # that it guards.
            self._process = subprocess.Popen(words, start_new_session=True, stdin=subprocess.PIPE, bufsize=0)  # noqa: S603 - our file
            self._tell(str(self.folder))

    @property
    def processes(self) -> frozenset[int]:
        """The ids of all processes that were passed to `watch`, including those that have ended."""
        return frozenset(self._told)

    def watch(self, pids: Iterable[int]) -> None:
        """Guard these processes too. They are killed at once if `kill` has been called."""
        import psutil  # vLLM needs it as well

        for pid in set(pids) - self._told:
            self._told.add(pid)
            self._tell(str(pid))
            with suppress(psutil.NoSuchProcess):
                self._family.add(psutil.Process(pid))
            if self._unwanted:
                self.kill()

    @contextmanager
    def launching(self, *names: str) -> Iterator[None]:
        """Watch a long launch in this thread whose processes are reported late.

        This guards the children of multiprocessing that the thread starts and whose names begin
        with one of `names`.
        """
        over = threading.Event()
        others = {child.pid for child in multiprocessing.active_children()}
        thread = threading.get_native_id()

        def look() -> None:
            noted = time.monotonic()
            while not over.wait(LOOK_SECONDS):
                self._watch_children(names, others, thread)
                if time.monotonic() - noted > NOTE_SECONDS:
                    self.note()
                    noted = time.monotonic()

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
            self._watch_children(names, others, thread)
            self.note()

    def _watch_children(self, names: tuple[str, ...], others: set[int | None], thread: int) -> None:
        found = {child.pid for child in multiprocessing.active_children() if child.name.startswith(names)} - others - self._told
        if found:
            self.watch(pid for pid in found if pid is not None and started_by(thread, pid))

    def note(self) -> None:
        """Record the processes' descendants and shared memory, for a later removal."""
        import psutil

        for one in list(self._family):
            with suppress(psutil.Error, OSError):
                self._family.update(one.children(recursive=True))
        for one in list(self._family):
            with suppress(psutil.Error, OSError):
                if one.is_running():
                    self._segments |= shared_memory.made_by(one.pid)

    def kill(self) -> None:
        """Kill all processes at once, even hung ones and those that a launch still starts."""
        import psutil

        self._unwanted = True
        alive = [one for one in list(self._family) if is_alive(one)]
        # Suspended processes start no more processes during the next look.
        for one in alive:
            with suppress(psutil.Error):
                one.suspend()
        if alive:
            self.note()
        for one in list(self._family):
            with suppress(psutil.Error):
                one.kill()

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            # A killed reaper guards nothing any more, and a closed one is no longer needed.
            with suppress(OSError, ValueError):
                self._process.stdin.write(os.fsencode(line) + b"\n")

    def close(self) -> None:
        """Kill the processes that have not ended yet, and remove what they left. Blocks briefly."""
        self._end_family()
        shared_memory.remove(self._segments)
        FOLDER.leave()
        if self._process is None:
            return
        self._tell(str(NO_MORE))
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def _end_family(self) -> None:
        # Workers of a killed core end by themselves unless they hang.
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline and not self._unwanted and any(map(is_alive, self._family)):
            time.sleep(LOOK_SECONDS)
        self.kill()
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline and any(map(is_alive, self._family)):
            time.sleep(LOOK_SECONDS)
        # This call reaps the processes that vLLM has killed; no other code does.
        multiprocessing.active_children()
        for pid in {one.pid for one in self._family} - self._told:
            # In a container whose first process is this one, orphans become its children.
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def is_alive(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started_by(thread: int, pid: int) -> bool:
    """Whether the thread has started the child.

    True on systems that do not report it (Linux without CONFIG_PROC_CHILDREN).
    """
    try:
        return str(pid) in Path(f"/proc/self/task/{thread}/children").read_text().split()
    except OSError:
        return True
