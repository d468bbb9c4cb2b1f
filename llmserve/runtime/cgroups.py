"""The control groups of this process, versions 1 and 2, and their limit of memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Version 1 has no word for "no limit", and reports a number of this size.
NO_LIMIT = 2**60


def own_groups(controller: str, cgroups: Path = CGROUPS, own: Path = OWN) -> Iterator[tuple[Path, int]]:
    """Yield the folders and versions of the process's groups and their ancestors; each limit applies."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Groups that do not exist are for the caller to skip: a container may see its path on the host
        # although its own group is mounted as the root.
        group = cgroups / controller if controllers else cgroups
        for name in ("", *filter(None, path.split("/"))):
            group /= name
            yield group, 1 if controllers else 2


def memory_limit(cgroups: Path = CGROUPS, own: Path = OWN) -> int | None:
    """Return the smallest limit in bytes; None without one."""
    limits: list[int] = []
    for group, version in own_groups("memory", cgroups, own):
        # The limit "max" raises ValueError.
        with suppress(OSError, ValueError):
            limits.append(int((group / ("memory.limit_in_bytes" if version == 1 else "memory.max")).read_text()))
    smallest = min(limits, default=NO_LIMIT)
    return smallest if smallest < NO_LIMIT else None
