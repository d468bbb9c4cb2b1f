"""The processes of one engine, from their launch to their end: they are killed when that is wanted, or when the host has ended, and what a
killed process leaves behind is removed.

After a `kill -9` of the host no other process would end them, and they would keep the GPU. So a process of a few megabytes (`reaper.py`)
waits for the host's end, or for theirs. A death signal (Linux's PR_SET_PDEATHSIG) comes already when the thread ends that had started them,
and a pipe is held open by all that the host has forked.
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

# The engine's processes are gone when this is waited for.
LEAVE_SECONDS = 5.0
# How often it is looked whether a launch has started a process; nobody is guarded for so long.
LOOK_SECONDS = 0.02
# How often the guard looks what the processes of a launch have: what one leaves that another program kills is known up to then.
NOTE_SECONDS = 1.0


class ProcessGuard:
    """Of processes of this host's. Where the system has no pidfds (Linux before 5.3, and others) they may outlive a host that is killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told: set[int] = set()
        # The guarded processes and what they have started, and the shared memory that they have made.
        self._family: set[psutil.Process] = set()
        self._segments: set[str] = set()
        self._unwanted = False
        self.folder = Path(FOLDER.enter())
        if hasattr(os, "pidfd_open"):
            words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), str(os.getpid())]
            # In a session of its own, or Ctrl-C would end it before what it guards.
            self._process = subprocess.Popen(words, start_new_session=True, stdin=subprocess.PIPE, bufsize=0)  # noqa: S603 - our file
            self._tell(str(self.folder))

    @property
    def processes(self) -> frozenset[int]:
        """The ids of those that it was asked to guard, also of those that have ended."""
        return frozenset(self._told)

    def watch(self, pids: Iterable[int]) -> None:
        """From now on these too; they are killed at once if `kill` has been called."""
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
        """While this thread launches something that takes long and says late which processes it has: those of multiprocessing's that the
        thread starts, and whose names begin like one of these."""
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
        """Look what the processes have started and made, to remove it when they cannot any more."""
        import psutil

        for one in list(self._family):
            with suppress(psutil.Error, OSError):
                self._family.update(one.children(recursive=True))
        for one in list(self._family):
            with suppress(psutil.Error, OSError):
                if one.is_running():
                    self._segments |= shared_memory.made_by(one.pid)

    def kill(self) -> None:
        """All of them at once, however they hang, and those too that a launch under way still starts."""
        import psutil

        self._unwanted = True
        alive = [one for one in list(self._family) if is_alive(one)]
        # None of them starts another one while it is looked what there is.
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
            # One that was killed guards no process; one that is closed is not needed any more.
            with suppress(OSError, ValueError):
                self._process.stdin.write(os.fsencode(line) + b"\n")

    def close(self) -> None:
        """To be called when they should have ended: kills those that have not, and removes what they left. Blocks for a moment."""
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
        # Workers of a core that was killed end by themselves, if they do not hang.
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline and not self._unwanted and any(map(is_alive, self._family)):
            time.sleep(LOOK_SECONDS)
        self.kill()
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline and any(map(is_alive, self._family)):
            time.sleep(LOOK_SECONDS)
        # Takes note of their ends, as no other code does for those that vLLM has killed.
        multiprocessing.active_children()
        for pid in {one.pid for one in self._family} - self._told:
            # Those that have lost their parent are this process's own where it is the first one of a container.
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def is_alive(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started_by(thread: int, pid: int) -> bool:
    """Whether a thread of this process has started a child; True where the system does not tell (Linux without CONFIG_PROC_CHILDREN)."""
    try:
        return str(pid) in Path(f"/proc/self/task/{thread}/children").read_text().split()
    except OSError:
        return True
