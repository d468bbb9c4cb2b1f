"""Shared memory that a killed process leaves in /dev/shm: 160 MiB for each of vLLM's message queues. Its maker would have removed it, and
Python's resource tracker removes it only when the host ends."""

import os
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import resource_tracker

# As multiprocessing.shared_memory names them; what others have made is not ours to remove.
PREFIX = "/dev/shm/psm_"  # noqa: S108 - not a folder for temporary files


def mapped_by(pid: int | str) -> set[str]:
    """The names of segments that a process has mapped. Raises OSError."""
    with open(f"/proc/{pid}/maps") as file:
        words = (line.split(maxsplit=5) for line in file)
        return {found[5].strip() for found in words if len(found) > 5 and found[5].startswith(PREFIX) and "(deleted)" not in found[5]}


def made_by(pid: int) -> set[str]:
    """Those that this process has not. Raises OSError."""
    return mapped_by(pid) - mapped_by("self")


def remove(names: Iterable[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name)
            # Or the tracker, which the host and its processes share, would miss it in the end.
            resource_tracker.unregister(f"/{os.path.basename(name)}", "shared_memory")
