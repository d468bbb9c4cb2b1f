"""Shared memory and semaphores that a killed process leaves in /dev/shm: 160 MiB for each of vLLM's message queues. Their maker would have
removed them, and Python's resource tracker removes them only when the host ends."""

import os
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import resource_tracker

FOLDER = "/dev/shm/"  # noqa: S108 - not a folder for temporary files
# As multiprocessing names them, and the tracker's word for them; what others have made is not ours to remove.
KINDS = {"psm_": "shared_memory", "sem.mp-": "semaphore"}


def mapped_by(pid: int | str) -> set[int]:
    """The inodes that a process has mapped there. By name a semaphore is not to be found: glibc maps it before it has one."""
    with open(f"/proc/{pid}/maps") as file:
        return {int(line.split()[4]) for line in file if FOLDER in line}


def made_by(pid: int) -> set[str]:
    """The names of those that a process has and this one has not. Raises OSError."""
    inodes = mapped_by(pid) - mapped_by("self")
    with os.scandir(FOLDER) as entries:
        return {entry.name for entry in entries if entry.inode() in inodes and entry.name.startswith(tuple(KINDS))}


def remove(names: Iterable[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(FOLDER + name)
            # Or the tracker, which the host and its processes share, would miss it in the end. It knows a semaphore without "sem.".
            kind = next(word for prefix, word in KINDS.items() if name.startswith(prefix))
            resource_tracker.unregister("/" + name.removeprefix("sem."), kind)
