"""CPUs by affinity and by cgroup quotas, and limits of memory, in a simulated folder and in a real group."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmserve.runtime.cgroups import CGROUPS, memory_limit
from llmserve.runtime.cpus import available_cpus

ROOT = Path(__file__).parents[2]


@pytest.fixture
def count(tmp_path, monkeypatch):
    """Count on 96 cores, given the lines of /proc/self/cgroup and the groups' files by path."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(96)))

    def counted(own, files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        (tmp_path / "own").write_text("".join(f"{line}\n" for line in own))
        return available_cpus(tmp_path / "cgroup", tmp_path / "own")

    return counted


@pytest.mark.parametrize(
    ("path", "files", "expected"),
    [
        ("/", {}, 96),
        ("/", {"cpu.max": "400000 100000"}, 4),
        ("/", {"cpu.max": "max 100000"}, 96),
        ("/", {"cpu.max": "250000 100000"}, 2),
        ("/", {"cpu.max": "50000 100000"}, 1),
        ("/", {"cpu.max": "20000000 100000"}, 96),
        ("/", {"cpu.max": "nonsense"}, 96),
        ("/pod/app", {"pod/cpu.max": "400000 100000", "pod/app/cpu.max": "max 100000"}, 4),
        ("/pod/app", {"pod/cpu.max": "800000 100000", "pod/app/cpu.max": "300000 100000"}, 3),
        ("/pod/app", {"cpu.max": "200000 100000", "pod/app/cpu.max": "300000 100000"}, 2),
        ("/pod", {"other/cpu.max": "100000 100000"}, 96),
        # In a container that sees its path on the host, but its own group as the root.
        ("/docker/abc", {"cpu.max": "400000 100000"}, 4),
        ("/../other", {"cpu.max": "400000 100000"}, 4),
    ],
)
def test_the_tightest_quota_of_a_group_and_its_ancestors_counts(count, path, files, expected):
    assert count([f"0::{path}"], files) == expected


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [({"": -1}, 96), ({"": 400_000}, 4), ({"": -1, "pod": 300_000, "pod/app": -1}, 3), ({"pod": 600_000, "pod/app": 500_000}, 5)],
)
def test_version_1_has_the_same(count, quotas, expected):
    files = {}
    for group, quota in quotas.items():
        files |= {f"cpu/{group}/cpu.cfs_quota_us": quota, f"cpu/{group}/cpu.cfs_period_us": 100_000}
    own = ["9:name=systemd:/pod/app", "3:cpuset:/none", "2:cpu,cpuacct:/pod/app", "0::/pod/app"]
    assert count(own, files) == expected


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {}, None),
        ("0::/", {"memory.max": "max"}, None),
        ("0::/", {"memory.max": "4096"}, 4096),
        ("0::/pod/app", {"pod/memory.max": "4096", "pod/app/memory.max": "8192"}, 4096),
        ("4:memory:/pod", {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/pod/memory.limit_in_bytes": "4096"}, 4096),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_the_smallest_limit_of_memory_of_a_group_and_its_ancestors_counts(tmp_path, line, files, expected):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{line}\n")
    assert memory_limit(tmp_path / "cgroup", tmp_path / "own") == expected


def test_without_cgroups_affinity_counts(tmp_path):
    assert available_cpus(tmp_path, tmp_path / "none") == len(os.sched_getaffinity(0))


def test_a_process_in_a_real_group_counts_its_quota():
    second = (CGROUPS / "cgroup.controllers").exists()
    group = (CGROUPS if second else CGROUPS / "cpu") / f"llmserve-{os.getpid()}"
    inner = group / "inner"
    try:
        inner.mkdir(parents=True)
        name, text = ("cpu.max", "100000 100000") if second else ("cpu.cfs_quota_us", "100000")
        (group / name).write_text(text)
        command = 'echo $$ > "$0/cgroup.procs" && exec "$1" -c "from llmserve.runtime.cpus import available_cpus; print(available_cpus())"'
        counted = subprocess.run(["sh", "-c", command, inner, sys.executable], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    finally:
        for made in (inner, group):
            if made.exists():
                made.rmdir()
    assert counted == "1\n"
