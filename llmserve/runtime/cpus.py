"""Number of CPUs that this process may use: its affinity, and the quotas of cgroups v1 and v2."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llmserve.runtime.cgroups import CGROUPS, OWN, own_groups


def available_cpus(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Return at least 1. A quota is rounded down: 2.5 CPUs count as 2."""
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(cgroups, own)])))


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
