"""Removes shared memory and semaphores that a killed process leaves in /dev/shm.

Each of vLLM's message queues leaves 160 MiB. Their creator would have removed them, and Python's
resource tracker removes them only when the host ends. The memory through which vLLM's CPU workers
of one engine exchange tensors has 4 MiB for each worker, and stays forever.
"""

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import resource_tracker

FOLDER = "/dev/shm/"  # noqa: S108 - not a folder for temporary files
# The prefixes of the names of multiprocessing and vLLM, and the resource tracker's name for each kind
# that it knows. Other files are not ours to remove.
KINDS = {"psm_": "shared_memory", "sem.mp-": "semaphore", "vllm_dist_": None}


def mapped_by(pid: int | str) -> set[int]:
    """Return the inodes in /dev/shm that a process has mapped.

    A semaphore cannot be found by name, because glibc maps it before it has one.
    """
    with open(f"/proc/{pid}/maps") as file:
        return {int(line.split()[4]) for line in file if FOLDER in line}


def made_by(pid: int) -> set[str]:
    """Return the names of what that process has mapped and this one has not. Raises OSError."""
    inodes = mapped_by(pid) - mapped_by("self")
    with os.scandir(FOLDER) as entries:
        return {entry.name for entry in entries if entry.inode() in inodes and entry.name.startswith(tuple(KINDS))}


def remove(names: Iterable[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(FOLDER + name)
            # Otherwise the tracker, which the host shares with its processes, would report it as
            # missing. It knows a semaphore without "sem.".
            kind = next(word for prefix, word in KINDS.items() if name.startswith(prefix))
            if kind is not None:
                resource_tracker.unregister("/" + name.removeprefix("sem."), kind)


def keep_progress_bars_private() -> None:
    """Give this process's progress bars (tqdm) a lock that no other process shares.

    torch shows one when it compiles, which may be during a request, after the guard's last look.
    tqdm's own lock is a semaphore in /dev/shm, which a killed process would leave there.
    """
    from tqdm import tqdm  # vLLM needs it as well

    tqdm.set_lock(threading.RLock())
