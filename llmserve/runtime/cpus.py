"""CPUs that this process may use: its affinity, and the quotas of cgroups v1 and v2."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmserve.runtime.cgroups import CGROUPS, OWN, own_groups

CPUS = Path("/sys/devices/system/cpu")


def available_cpus(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Return at least 1. A quota is rounded down: 2.5 CPUs count as 2."""
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(cgroups, own)])))


def physical_cores(cpus: Path = CPUS) -> list[int]:
    """Return the ids of the CPUs in this process's affinity, one for each physical core.

    Two hardware threads of a core compute hardly faster than one.
    """
    found: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        core = str(cpu)
        with suppress(OSError):
            core = (cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        found.setdefault(core, cpu)
    return list(found.values())


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Yield the quotas of the process's groups and their ancestors, in CPUs; each one applies."""
    for group, version in own_groups("cpu", cgroups, own):
        with suppress(OSError, ValueError):
            yield _quota(group, version)


def _quota(group: Path, version: int) -> float:
    """Return a group's quota. Raises ValueError or OSError if the group has none."""
    if version == 2:
        # The quota "max" raises ValueError too.
        quota, period = map(int, (group / "cpu.max").read_text().split())
    else:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota <= 0 or period <= 0:
        raise ValueError("no quota")
    return quota / period
